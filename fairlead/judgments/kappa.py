"""Cohen's and Fleiss' kappa: agreement on categories beyond what chance gives.

Both need values from every labeler on every unit; `alpha` allows gaps and orders of categories.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairlead.errors import InvalidInput


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Return (observed − expected) ÷ (1 − expected) agreement of two labelers, who may have other habits.

    Cohen 1960, A coefficient of agreement for nominal scales, equation 1. NaN without units, and if both
    always give the same one category, so that chance explains everything.

    Args:
        first: category that the first labeler gave each unit.
        second: those of the second labeler, of the same units.

    Raises:
        InvalidInput: if the lengths differ.
    """
    if len(first) != len(second):
        raise InvalidInput("second", got=f"{len(second)} values", allowed=f"{len(first)}, one for each unit")
    index = {category: place for place, category in enumerate(dict.fromkeys([*first, *second]))}
    joint_KK = np.zeros((len(index), len(index)))
    np.add.at(joint_KK, ([index[one] for one in first], [index[one] for one in second]), 1.0)
    if not len(first):
        return float("nan")
    joint_KK /= len(first)
    return _beyond_chance(float(np.trace(joint_KK)), float(joint_KK.sum(axis=0) @ joint_KK.sum(axis=1)))


def fleiss_kappa(counts_UK: ArrayLike) -> float:
    """Return the kappa of units that have the same number of values, of any labelers.

    Fleiss 1971, Measuring nominal scale agreement among many raters, equation 5. NaN without units, and if
    all values are of one category.

    Args:
        counts_UK: how many labelers gave each unit each category.

    Raises:
        InvalidInput: if units have different numbers of values, or fewer than two.
    """
    counts: NDArray[np.float64] = np.atleast_2d(np.asarray(counts_UK, np.float64))
    if not counts.size:
        return float("nan")
    values_U = counts.sum(axis=1)
    values = float(values_U[0])
    if values < 2 or (values_U != values).any():
        got = f"from {values_U.min():g} to {values_U.max():g} values in a unit"
        raise InvalidInput("counts", got=got, allowed="the same number in each, at least 2; or use alpha")
    observed_U = ((counts**2).sum(axis=1) - values) / (values * (values - 1))
    share_K = counts.sum(axis=0) / counts.sum()
    return _beyond_chance(float(observed_U.mean()), float(share_K @ share_K))


def _beyond_chance(observed: float, expected: float) -> float:
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")
