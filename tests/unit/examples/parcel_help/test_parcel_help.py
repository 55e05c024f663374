"""Parcel help: corpus, every rule of the gold reward, labelers, measures."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from statistics import fmean

import pytest

from examples.parcel_help import corpus, gold, labelers, measures, methods
from examples.parcel_help.measures import Comparison
from examples.parcel_help.quickstart import CONFIG
from fairlead.config import load
from fairlead.judgments import Judgment, agreement
from fairlead.judgments.calibration import accuracy

LAMP = "my lamp was charged twice ."
GOOD = "hello . we are sorry about your lamp . we will refund one charge . have a good day ."


def test_there_are_144_questions_and_a_small_vocabulary() -> None:
    asked = corpus.questions()
    assert len(asked) == len({question.text for question in asked}) == 144
    assert Counter(question.item for question in asked) == dict.fromkeys(corpus.ITEMS, 24)
    assert Counter(question.problem for question in asked) == dict.fromkeys(corpus.PROBLEMS, 36)
    pairs = corpus.demonstrations(6_400, seed=0)
    words = {word for pair in pairs for text in pair for word in text.split()}
    assert 80 <= len(words) <= 110
    assert all(text == " ".join(text.split()) for pair in pairs for text in pair)


def test_demonstrations_are_of_mixed_skill_and_repeatable() -> None:
    pairs = corpus.demonstrations(4_000, seed=3)
    assert pairs == corpus.demonstrations(4_000, seed=3)
    assert pairs != corpus.demonstrations(4_000, seed=4)
    worths = [gold.reward(prompt, answer, ended=True) for prompt, answer in pairs]
    assert max(worths) == pytest.approx(gold.BEST)
    assert min(worths) < -2
    assert 0.4 < fmean(worths) < 1.2
    kinds = Counter(part.kind for _, answer in pairs for part in gold.parse(answer))
    assert "ungrammatical" not in kinds
    assert set(kinds) == {"greeting", "apology", "remedy", "closing", "rude", "filler"}


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        (GOOD, 3.1),
        ("", 0.0),
        ("we will refund one charge .", 1.6),
        ("you will get your money back .", 1.6),
        ("we will send a new one .", -0.8),
        ("we are sorry about your lamp .", 0.9),
        ("sorry for the trouble with the lamp .", 0.9),
        ("we are sorry about your chair .", 0.0),
        ("have a good day .", 0.4),
        ("hello there .", 0.2),
        ("our shop is on the road .", 0.0),
        ("stop asking .", -1.2),
        ("stop asking . that is your problem .", -2.4),
        # Repetitions: the same words, and the same kind of sentence in different words.
        ("hello . hello .", 0.2 - 0.6),
        ("hello . good day . hello there .", 0.2 - 1.2),
        ("we sell many things . we sell many things .", -0.6),
        # Only the first sentence of a kind counts.
        ("we will send a new one . we will refund one charge .", -0.8 - 0.6),
        ("we will refund one charge . we will send a new one .", 1.6 - 0.6),
        # Ungrammatical: unknown sentences, and an end without a full stop.
        ("we will lamp .", -0.8),
        ("hello", -0.8),
        (". .", -1.6),
        ("hello . have a", 0.2 - 0.8),
        # Neither order nor white space matters.
        ("have a good day .   hello .", 0.6),
    ],
)
def test_every_rule_of_the_gold_reward(answer: str, worth: float) -> None:
    assert gold.reward(LAMP, answer, ended=True) == pytest.approx(worth, abs=1e-9)


def test_gold_depends_on_the_question() -> None:
    assert gold.reward("the lamp is late .", GOOD, ended=True) == pytest.approx(3.1 - 1.6 - 0.8)
    assert gold.reward("my chair was charged twice .", GOOD, ended=True) == pytest.approx(3.1 - 0.9)
    with pytest.raises(KeyError):
        gold.reward("what is the time ?", GOOD, ended=True)


def test_gold_penalizes_answers_that_are_cut_off_or_too_long() -> None:
    assert gold.reward(LAMP, GOOD, ended=False) == pytest.approx(3.1 - 1.0)
    long = "hello . " + "stop asking . " * 12
    assert len(long.split()) == 38
    assert gold.reward(LAMP, long, ended=True) == pytest.approx(0.2 - 12 * 1.2 - 6 * 0.1)
    assert len(GOOD.split()) <= corpus.MAX_WORDS


def test_best_equals_the_maximum_over_all_combinations_of_parts() -> None:
    question = next(q for q in corpus.questions() if q.text == LAMP)
    apologies = [text.format(item=item) for text in corpus.APOLOGIES for item in corpus.ITEMS]
    remedies = [text for texts in corpus.REMEDIES.values() for text in texts]
    choices = [
        ("", *part)
        for part in (corpus.GREETINGS, apologies, remedies, corpus.CLOSINGS, corpus.FILLERS, corpus.RUDE)
    ]
    best = max(
        gold.reward(question.text, " ".join(answer), ended=True) for answer in itertools.product(*choices)
    )
    assert best == pytest.approx(gold.BEST) == pytest.approx(3.1)


def test_plackett_luce_probabilities_equal_enumeration() -> None:
    worths = [1.0, -0.3, 0.4, 0.0]
    weights = [math.exp(worth / 0.7) for worth in worths]
    orders = list(itertools.permutations(range(4)))
    for order in orders:
        expected = math.prod(
            weights[index] / sum(weights[other] for other in order[place:])
            for place, index in enumerate(order)
        )
        assert labelers.ranking_probability(worths, order) == pytest.approx(expected, rel=1e-12)
    assert sum(labelers.ranking_probability(worths, order) for order in orders) == pytest.approx(1)


def test_rankings_are_drawn_with_plackett_luce_probabilities() -> None:
    worths = [1.0, -0.3, 0.4]
    rng = random.Random(11)
    draws = 20_000
    seen = Counter(tuple(labelers.rank(worths, rng=rng)) for _ in range(draws))
    for order in itertools.permutations(range(3)):
        p = labelers.ranking_probability(worths, order)
        # Five standard deviations of a binomial share.
        assert abs(seen[order] / draws - p) < 5 * math.sqrt(p * (1 - p) / draws)


def test_labelers_agree_on_75_percent_of_pairs() -> None:
    rng = random.Random(5)
    found = []
    for seed in range(3):
        by_prompt: dict[str, list[float]] = {}
        for prompt, answer in corpus.demonstrations(4_000, seed=seed):
            by_prompt.setdefault(prompt, []).append(gold.reward(prompt, answer, ended=True))
        for prompt, worths in by_prompt.items():
            for start in range(0, len(worths) - 3, 4):
                four = worths[start : start + 4]
                for labeler in ("anna", "bo"):
                    places = labelers.rank(four, rng=rng)
                    ranks = {f"answer {index}": rank for rank, index in enumerate(places)}
                    found.append(Judgment(f"{seed} {prompt} {start}", labeler, ranks))
    assert len(found) > 5_000
    assert agreement(found, seed=0).rate == pytest.approx(0.75, abs=0.03)


def test_win_rate_counts_ties_half_and_weights_prompts_equally() -> None:
    before = {"a": [0.0, 1.0], "b": [5.0]}
    after = {"a": [1.0], "b": [5.0, 4.0, 3.0, 9.0]}
    # a: one win, one tie; b: one tie, two losses, one win.
    assert measures.win_rate(before, after) == pytest.approx(((1 + 0.5) / 2 + (0.5 + 0 + 0 + 1) / 4) / 2)
    low, high = measures.win_rate_interval(before, after, seed=0)
    assert low == pytest.approx(0.375)
    assert high == pytest.approx(0.75)


def test_accuracies_leave_out_gold_ties() -> None:
    compared = [Comparison("p", "x y", "z", gap) for gap in (1.0, -1.0, 0.0, 2.0)]
    found = measures.accuracies([0.5, 0.5, 0.5, -0.5], compared)
    assert found == {"accuracy_labels": 0.75, "accuracy_gold": pytest.approx(1 / 3)}
    assert measures.longer_margins(compared) == [1.0] * 4
    assert math.isnan(accuracy([]))


def test_bag_of_words_is_the_logistic_regression_of_count_differences() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = random.Random(7)
    words = ["good", "bad", "fine", "rude", "the", "a"]
    worth = {"good": 1.0, "fine": 0.5, "bad": -1.0, "rude": -1.5}

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 6)))

    compared = []
    for _ in range(300):
        one, other = text(), text()
        gap = sum(worth.get(w, 0) for w in one.split()) - sum(worth.get(w, 0) for w in other.split())
        first = rng.random() < 1 / (1 + math.exp(-gap))
        compared.append(Comparison("", one, other, gap) if first else Comparison("", other, one, -gap))
    train, heldout = compared[:200], compared[200:]

    def counts(comparison: Comparison) -> list[int]:
        return [comparison.chosen.split().count(w) - comparison.rejected.split().count(w) for w in words]

    rows = [counts(c) for c in train]
    mirrored = [[-value for value in row] for row in rows]
    # Each comparison and its mirror image equal one comparison without an intercept at half the C.
    oracle = linear_model.LogisticRegression(C=0.5, fit_intercept=False, tol=1e-10, max_iter=10_000)
    oracle.fit(rows + mirrored, [1] * len(rows) + [0] * len(rows))

    margins = measures.bag_of_words_margins(train, heldout)
    expected = oracle.decision_function([counts(c) for c in heldout])
    assert margins == pytest.approx(list(expected), abs=1e-3)
    assert accuracy(margins) > 0.65


def test_every_method_is_a_valid_configuration_in_a_folder_of_its_own() -> None:
    config = load(CONFIG)
    found = {name: methods.configured(config, name) for name in methods.METHODS}
    assert len({made.folder.root for made in found.values()}) == len(found)
    assert [name for name, made in found.items() if made.ppo.has_critic] == ["ppo"]
    for made in found.values():
        kept = made.ppo.model_dump(include={"updates", "batch_size", "learning_rate", "missing_eos_penalty"})
        assert kept == config.ppo.model_dump(include=kept.keys())
