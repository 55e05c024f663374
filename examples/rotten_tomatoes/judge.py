"""A judge of sentiment that is independent of the reward model: another kind of model, other labels.

It is a logistic regression on words and pairs of words, weighted by tf-idf. It is trained on the part of the
sentences that neither fine-tuning nor the reward model sees.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize

from fairlead.data.sentences import Sentence

PENALTY = 0.3
"""Weight of ½·|w|² relative to the sum of the losses."""


@dataclass(frozen=True, slots=True)
class Judge:
    """A fitted classifier of texts."""

    index: dict[str, int]
    """Column of each term."""
    rarity: NDArray[np.float64]
    """Inverse document frequency of each term."""
    weights: NDArray[np.float64]
    """Weight of each term, the intercept last."""

    def probabilities(self, texts: Sequence[str]) -> list[float]:
        """Return the probability of label 1 for each text."""
        margins = _features(texts, self.index, self.rarity) @ self.weights
        return [1 / (1 + math.exp(-min(max(margin, -500.0), 500.0))) for margin in margins]

    def accuracy(self, sentences: Sequence[Sentence]) -> float:
        """Return the share of labelled sentences whose label it predicts."""
        found = self.probabilities([sentence.text for sentence in sentences])
        right = [(p > 0.5) == (s.label == 1) for p, s in zip(found, sentences, strict=True)]
        return sum(right) / len(right)


def train(sentences: Sequence[Sentence]) -> Judge:
    """Fit the judge. The same sentences give the same judge."""
    documents = Counter(term for sentence in sentences for term in set(_terms(sentence.text)))
    terms = sorted(documents)
    index = {term: column for column, term in enumerate(terms)}
    rarity = np.array([math.log(len(sentences) / documents[term]) + 1 for term in terms])
    rows = _features([sentence.text for sentence in sentences], index, rarity)
    signs = np.array([1.0 if sentence.label == 1 else -1.0 for sentence in sentences])

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (rows @ weights)
        slope = -signs / (1 + np.exp(np.minimum(margins, 500.0)))
        value = np.logaddexp(0, -margins).sum() + 0.5 * PENALTY * weights @ weights
        return float(value), rows.T @ slope + PENALTY * weights

    fitted = minimize(loss, np.zeros(len(terms) + 1), jac=True, method="L-BFGS-B")
    return Judge(index=index, rarity=rarity, weights=np.asarray(fitted.x))


def _terms(text: str) -> list[str]:
    words = text.split()
    return [*words, *(f"{one} {other}" for one, other in itertools.pairwise(words))]


def _features(texts: Sequence[str], index: dict[str, int], rarity: NDArray[np.float64]) -> Any:  # noqa: ANN401
    """Return rows of unit length, plus a 1 for the intercept, as a sparse matrix (scipy has no types)."""
    values: list[float] = []
    columns: list[int] = []
    starts = [0]
    for text in texts:
        counts = Counter(index[term] for term in _terms(text) if term in index)
        row = {column: (1 + math.log(count)) * rarity[column] for column, count in counts.items()}
        norm = math.sqrt(sum(value * value for value in row.values())) or 1.0
        columns += [*row, len(index)]
        values += [*(value / norm for value in row.values()), 1.0]
        starts.append(len(columns))
    return sparse.csr_matrix((values, columns, starts), shape=(len(texts), len(index) + 1))
