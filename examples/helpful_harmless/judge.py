"""A judge of harm that is independent of the reward model: a linear head on features of the untuned model.

It has learnt from pairs that the reward model has not seen, by logistic regression on differences of
features. It is cheap, as the body of the model is not trained.

Shapes: P pairs, N answers, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]

PENALTY = 300.0
"""Weight of ½·|w|² relative to the sum of the losses: strong, as there are more features than pairs."""
FOLDS = 5
"""Folds by which the accuracy is measured."""


@dataclass(frozen=True, slots=True)
class Judge:
    """A fitted head."""

    weights_F: Array
    """Weight of each feature."""

    def scores(self, features_NF: Array) -> Array:
        """Return the score [N] of each answer; 1 more means odds of e that it is the better one."""
        return features_NF @ self.weights_F


def fit(better_PF: Array, worse_PF: Array, *, penalty: float = PENALTY) -> Judge:
    """Fit a head to pairs by −log σ(w·(better − worse)), with features divided by their deviation."""
    differences_PF = better_PF - worse_PF
    scale_F = np.concatenate([better_PF, worse_PF]).std(axis=0)
    scale_F = np.where(scale_F > 0, scale_F, 1.0)
    rows_PF = differences_PF / scale_F

    def loss(weights_F: Array) -> tuple[float, Array]:
        margins_P = rows_PF @ weights_F
        slope_P = -1 / (1 + np.exp(np.minimum(margins_P, 500.0)))
        value = np.logaddexp(0, -margins_P).sum() + 0.5 * penalty * weights_F @ weights_F
        return float(value), rows_PF.T @ slope_P + penalty * weights_F

    fitted = minimize(loss, np.zeros(rows_PF.shape[1]), jac=True, method="L-BFGS-B")
    return Judge(np.asarray(fitted.x) / scale_F)


def crossed_margins(better_PF: Array, worse_PF: Array, *, seed: int, penalty: float = PENALTY) -> Array:
    """Return the margin [P] of each pair by a head that was fitted to the other folds."""
    order = np.random.default_rng(seed).permutation(len(better_PF))
    margins_P = np.zeros(len(better_PF))
    for fold in range(FOLDS):
        asked = order[fold::FOLDS]
        known = np.setdiff1d(order, asked)
        head = fit(better_PF[known], worse_PF[known], penalty=penalty)
        margins_P[asked] = head.scores(better_PF[asked]) - head.scores(worse_PF[asked])
    return margins_P
