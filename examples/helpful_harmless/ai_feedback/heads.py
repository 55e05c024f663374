"""Fit linear heads to the same pairs under many labelings at once, as `judge.fit` fits one.

Labels only change the sign of a pair's difference of features, so all heads share one matrix of inner
products and, as a bound of their Hessians, its inverse (Böhning and Lindsay 1988). A step of all heads is one
matrix product.

Shapes: P pairs, F features, A heads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from examples.helpful_harmless.judge import Array

_STEPS = 500
"""Most steps; a few dozen are enough for the penalties in use."""
_TOLERANCE = 1e-6
"""Largest change of a step, relative to the largest value, that ends the fit."""


def fit(
    better_PF: Array, worse_PF: Array, right_PA: NDArray[np.bool_], weights_PA: Array, *, penalty: float
) -> Array:
    """Return the weights [F, A] of the features of each head.

    Args:
        better_PF: features of one answer of each pair.
        worse_PF: features of the other.
        right_PA: whether the labels of a head prefer the first.
        weights_PA: weight of each label's loss, at most 1.
        penalty: see `judge.PENALTY`.

    Raises:
        ArithmeticError: if a fit has not ended, which means that the penalty is tiny.
    """
    scale_F = np.concatenate([better_PF, worse_PF]).std(axis=0)
    scale_F = np.where(scale_F > 0, scale_F, 1.0)
    rows_PF = (better_PF - worse_PF) / scale_F
    signs_PA = np.where(right_PA, 1.0, -1.0)
    gram_PP = rows_PF @ rows_PF.T
    inverse_PP = np.linalg.inv(gram_PP / 4 + penalty * np.eye(len(rows_PF)))
    # A head's weights are a sum of rows, and these are their coefficients.
    duals_PA = np.zeros_like(signs_PA)
    for _ in range(_STEPS):
        slopes_PA = -weights_PA * signs_PA * expit(-signs_PA * (gram_PP @ duals_PA))
        steps_PA = inverse_PP @ (slopes_PA + penalty * duals_PA)
        duals_PA -= steps_PA
        if np.abs(steps_PA).max() <= _TOLERANCE * np.abs(duals_PA).max():
            return np.asarray(rows_PF.T @ duals_PA) / scale_F[:, None]
    raise ArithmeticError(f"the fit has not ended after {_STEPS} steps: raise the penalty above {penalty}")
