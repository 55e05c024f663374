"""Baselines for a reward model: the longer response wins, and a logistic regression on words.

Knows (winner, loser) pairs of texts and no models. A margin is the winner's score minus the loser's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

Pairs = Sequence[tuple[str, str]]


def longer_wins(pairs: Pairs) -> list[float]:
    """Return the difference in length of each pair, in words."""
    return [float(len(winner.split()) - len(loser.split())) for winner, loser in pairs]


def bag_of_words(train: Pairs, heldout: Pairs) -> list[float]:
    """Return the margins on `heldout` of a logistic regression on word-count differences, fitted to `train`.

    It uses neither the order of words nor the prompt. It has no intercept, as swapping winner and loser must
    flip the sign, and an L2 penalty of ½·|w|².
    """
    words = {word for pair in train for text in pair for word in text.split()}
    if not words or not heldout:
        return [0.0] * len(heldout)
    index = {word: column for column, word in enumerate(sorted(words))}
    train_PW = _count_differences(train, index)
    heldout_PW = _count_differences(heldout, index)

    def loss(weights_W: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins_P = train_PW @ weights_W
        value = np.logaddexp(0, -margins_P).sum() + 0.5 * weights_W @ weights_W
        return float(value), weights_W - train_PW.T @ (1 / (1 + np.exp(np.minimum(margins_P, 500.0))))

    fitted = minimize(loss, np.zeros(len(index)), jac=True, method="L-BFGS-B")
    return [float(margin) for margin in heldout_PW @ fitted.x]


def _count_differences(pairs: Iterable[tuple[str, str]], index: Mapping[str, int]) -> csr_matrix:
    """Return [P, W], sparse: texts have many different words, and each pair few of them."""
    rows: list[int] = []
    columns: list[int] = []
    signs: list[float] = []
    count = 0
    for row, (winner, loser) in enumerate(pairs):
        count = row + 1
        for text, sign in ((winner, 1.0), (loser, -1.0)):
            known = [index[word] for word in text.split() if word in index]
            rows += [row] * len(known)
            columns += known
            signs += [sign] * len(known)
    return csr_matrix((signs, (rows, columns)), shape=(count, len(index)))
