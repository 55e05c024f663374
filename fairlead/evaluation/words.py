"""A classifier of texts by their words and pairs of words: a logistic regression on tf-idf.

It is small enough to be kept in the package as a table of weights. Predicting needs no library; training
needs scipy. Does not know what the labels mean.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PENALTY = 0.3
"""Weight of ½·|w|² relative to the sum of the losses."""
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_LARGEST_MARGIN = 500.0


def words_at_spaces(text: str) -> list[str]:
    """Return the words of a text that is tokenized already."""
    return text.split()


def plain_words(text: str) -> list[str]:
    """Return the words of any text in lower case, without punctuation, digits and names of accounts."""
    return _WORD.findall(re.sub(r"https?://\S+|&\w+;|@\w+", " ", text.replace("\u2019", "'").lower()))


@dataclass(frozen=True, slots=True)
class WordClassifier:
    """A fitted classifier."""

    terms: Mapping[str, tuple[float, float]]
    """Inverse document frequency and weight of each word and pair of words."""
    intercept: float
    """Margin of a text without known words."""
    words_of: Callable[[str], list[str]] = words_at_spaces
    """Divides a text into words."""

    def probability(self, text: str) -> float:
        """Return the probability of label 1."""
        counts = Counter(term for term in terms_of(self.words_of(text)) if term in self.terms)
        values = {term: (1 + math.log(count)) * self.terms[term][0] for term, count in counts.items()}
        norm = math.sqrt(sum(value * value for value in values.values())) or 1.0
        margin = self.intercept + sum(value * self.terms[term][1] for term, value in values.items()) / norm
        return 1 / (1 + math.exp(-min(max(margin, -_LARGEST_MARGIN), _LARGEST_MARGIN)))

    def probabilities(self, texts: Sequence[str]) -> list[float]:
        """Return the probability of label 1 for each text."""
        return [self.probability(text) for text in texts]

    def accuracy(self, texts: Sequence[str], labels: Sequence[int]) -> float:
        """Return the share of texts whose label, 0 or 1, it predicts."""
        right = [
            (found > 0.5) == (label == 1)
            for found, label in zip(self.probabilities(texts), labels, strict=True)
        ]
        return sum(right) / len(right)

    def save(self, path: Path, about: Mapping[str, object]) -> None:
        """Write the weights, and what is known of them, as gzipped JSON that depends on nothing else."""
        terms = {term: [round(rarity, 4), round(weight, 4)] for term, (rarity, weight) in self.terms.items()}
        content = {**about, "intercept": round(self.intercept, 4), "terms": terms}
        path.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))


def load(content: bytes, words_of: Callable[[str], list[str]]) -> tuple[WordClassifier, dict[str, Any]]:
    """Return a classifier that `save` has written, and what is known of it."""
    about = json.loads(gzip.decompress(content))
    terms = {term: (float(rarity), float(weight)) for term, (rarity, weight) in about.pop("terms").items()}
    return WordClassifier(terms, float(about.pop("intercept")), words_of), about


def train(
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    words_of: Callable[[str], list[str]] = words_at_spaces,
    penalty: float = PENALTY,
    min_texts: int = 1,
    example_weights: Sequence[float] | None = None,
) -> WordClassifier:
    """Fit a classifier. The same texts give the same one.

    Args:
        texts: at least one.
        labels: 0 or 1 for each.
        words_of: divides a text into words.
        penalty: see `PENALTY`.
        min_texts: a term of fewer texts is left out.
        example_weights: how much each text counts; 1 by default.
    """
    from scipy.optimize import minimize

    found = [terms_of(words_of(text)) for text in texts]
    documents = Counter(term for one in found for term in set(one))
    terms = sorted(term for term, count in documents.items() if count >= min_texts)
    index = {term: column for column, term in enumerate(terms)}
    rarity = np.array([math.log(len(texts) / documents[term]) + 1 for term in terms])
    rows = _features(found, index, rarity)
    signs = np.array([1.0 if label == 1 else -1.0 for label in labels])
    counts = np.ones(len(texts)) if example_weights is None else np.asarray(example_weights, np.float64)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (rows @ weights)
        slope = -counts * signs / (1 + np.exp(np.minimum(margins, _LARGEST_MARGIN)))
        value = (counts * np.logaddexp(0, -margins)).sum() + 0.5 * penalty * weights @ weights
        return float(value), rows.T @ slope + penalty * weights

    fitted = minimize(loss, np.zeros(len(terms) + 1), jac=True, method="L-BFGS-B").x
    return WordClassifier(
        {term: (float(rarity[column]), float(fitted[column])) for term, column in index.items()},
        float(fitted[-1]),
        words_of,
    )


def terms_of(words: Sequence[str]) -> list[str]:
    """Return the words and the pairs of adjacent words."""
    return [*words, *(f"{one} {other}" for one, other in itertools.pairwise(words))]


def _features(found: Sequence[Sequence[str]], index: Mapping[str, int], rarity: NDArray[np.float64]) -> Any:  # noqa: ANN401
    """Return rows of unit length, plus a 1 for the intercept, as a sparse matrix (scipy has no types)."""
    from scipy import sparse

    values: list[float] = []
    columns: list[int] = []
    starts = [0]
    for terms in found:
        counts = Counter(index[term] for term in terms if term in index)
        row = {column: (1 + math.log(count)) * rarity[column] for column, count in counts.items()}
        norm = math.sqrt(sum(value * value for value in row.values())) or 1.0
        columns += [*row, len(index)]
        values += [*(value / norm for value in row.values()), 1.0]
        starts.append(len(columns))
    return sparse.csr_matrix((values, columns, starts), shape=(len(found), len(index) + 1))
