"""The classifier of words compared with scikit-learn, and its file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fairlead.evaluation import words
from fairlead.evaluation.toxicity import (
    classifier_figures,
    lexicon,
    toxic_probability,
    toxic_words,
)
from fairlead.evaluation.words import plain_words


def _texts(count: int, seed: int) -> tuple[list[str], list[int]]:
    rng = random.Random(seed)
    known = {1: ["good", "warm", "fun", "film", "a"], 0: ["bad", "dull", "long", "film", "a"]}
    labels = [rng.randrange(2) for _ in range(count)]
    texts = [
        " ".join(rng.choice(known[label if rng.random() < 0.7 else 1 - label]) for _ in range(6))
        for label in labels
    ]
    return texts, labels


def test_equals_scikit_learns_tfidf_logistic_regression(tmp_path: Path) -> None:
    text_features = pytest.importorskip("sklearn.feature_extraction.text")
    linear_model = pytest.importorskip("sklearn.linear_model")
    texts, labels = _texts(300, 1)
    found = words.train(texts, labels)

    vectorizer = text_features.TfidfVectorizer(
        token_pattern=r"\S+", ngram_range=(1, 2), sublinear_tf=True, smooth_idf=False
    )
    rows = vectorizer.fit_transform(texts)
    assert sorted(vectorizer.vocabulary_) == sorted(found.terms)
    # The intercept is a column of ones and is penalized like the other weights.
    oracle = linear_model.LogisticRegression(
        C=1 / words.PENALTY, fit_intercept=False, tol=1e-9, max_iter=10_000
    )
    from scipy.sparse import csr_matrix, hstack

    def with_ones(matrix: csr_matrix) -> csr_matrix:
        return hstack([matrix, [[1.0]] * matrix.shape[0]]).tocsr()

    oracle.fit(with_ones(rows), labels)
    test, test_labels = _texts(100, 2)
    asked = [*test, "words nobody said", ""]
    expected = oracle.predict_proba(with_ones(vectorizer.transform(asked)))[:, 1]
    assert found.probabilities(asked) == pytest.approx(list(expected), abs=1e-3)
    assert found.accuracy(test, test_labels) > 0.7

    file = tmp_path / "w.json.gz"
    found.save(file, {"trained_on": "these"})
    read, about = words.load(file.read_bytes(), words.words_at_spaces)
    assert about == {"trained_on": "these"}
    assert read.probabilities(asked) == pytest.approx(found.probabilities(asked), abs=1e-3)
    found.save(tmp_path / "again.json.gz", {"trained_on": "these"})
    assert (tmp_path / "again.json.gz").read_bytes() == file.read_bytes()


def test_example_weights_equal_repeated_texts() -> None:
    texts, labels = _texts(60, 3)
    weights = [3.0 if label else 1.0 for label in labels]
    weighted = words.train(texts, labels, example_weights=weights, penalty=1.0)
    both = [one for one in zip(texts, labels, strict=True) for _ in range(1 + 2 * one[1])]
    # The rarity of a term depends on the number of texts, so the two are only close.
    other = words.train([text for text, _ in both], [label for _, label in both], penalty=1.0)
    found = zip(weighted.probabilities(texts), other.probabilities(texts), strict=True)
    gap = [abs(one - two) for one, two in found]
    assert max(gap) < 0.1


def test_plain_words_leave_out_accounts_links_and_punctuation() -> None:
    assert plain_words("@Someone: DON’T look &amp; see https://x.y/z, it's 5!") == [
        "don't",
        "look",
        "see",
        "it's",
    ]


def test_toxic_words_are_whole_words_by_category() -> None:
    assert toxic_words("You IDIOT! I hope you die.") == {"insults": ["idiot"], "threats": ["hope you die"]}
    assert toxic_words("An assassin passes the classic cockpit; the grape harvest is in Scunthorpe.") == {}
    assert set(lexicon()) == {"insults", "obscenities", "slurs", "threats"}
    every = [entry for entries in lexicon().values() for entry in entries]
    assert len(every) == len(set(every))
    # An entry that the division into words changes could never be found.
    assert all(" ".join(plain_words(entry)) == entry for entry in every)


def test_packaged_classifier_separates_clear_texts_and_says_what_it_was_trained_on() -> None:
    assert toxic_probability("shut up you stupid bitch") > 0.9
    assert toxic_probability("Water boils at 100 degrees Celsius at sea level.") < 0.1
    about = classifier_figures()
    assert set(about["held_out"]) == {"tweets", "HateCheck", "answers of assistants"}
    assert about["held_out"]["tweets"]["accuracy"] > 0.9
    assert about["held_out"]["tweets"]["n"] > 4_000
