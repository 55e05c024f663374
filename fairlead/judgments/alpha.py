"""Krippendorff's alpha: agreement beyond chance of any number of labelers, with gaps, on ordered values or
not.

Letters: U units, L labelers, K categories, the different values in ascending order.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairlead.errors import InvalidInput

Level = Literal["nominal", "ordinal", "interval", "ratio"]
"""What the difference of two values means: nothing, their order, their distance, or their proportion."""
Floats = NDArray[np.float64]


def krippendorff_alpha(values_UL: ArrayLike, *, level: Level) -> float:
    """Return alpha of values, NaN where a labeler has none; units with fewer than two values do not count.

    Krippendorff 2011, Computing Krippendorff's alpha-reliability, sections C to E. 1 is perfect agreement, 0
    is chance. NaN if no unit has two values, or all values are equal.

    Args:
        values_UL: value of each unit by each labeler; a gap is NaN.
        level: level of measurement.

    Raises:
        InvalidInput: for an infinite value, or an unknown level.
    """
    values: Floats = np.atleast_2d(np.asarray(values_UL, np.float64))
    given = ~np.isnan(values)
    if np.isinf(values).any():
        raise InvalidInput("values", got="an infinite value", allowed="numbers, and NaN for a gap")
    categories_K, index = np.unique(values[given], return_inverse=True)
    counts_UK = np.zeros((len(values), len(categories_K)))
    np.add.at(counts_UK, (np.nonzero(given)[0], index), 1.0)
    return alpha_of_coincidences(coincidences(counts_UK).sum(axis=0), categories_K, level=level)


def coincidences(counts_UK: Floats) -> Floats:
    """Return [U, K, K]: of each unit its ordered pairs of values, as many in all as it has values.

    All zeros for a unit with fewer than two values. The coincidence matrix of the data is their sum.
    """
    values_U = counts_UK.sum(axis=1)
    pairs_UKK = counts_UK[:, :, None] * counts_UK[:, None, :]
    diagonal = np.arange(counts_UK.shape[1])
    pairs_UKK[:, diagonal, diagonal] -= counts_UK
    return np.asarray(pairs_UKK / np.maximum(values_U - 1, 1.0)[:, None, None])


def alpha_of_coincidences(coincidences_KK: Floats, categories_K: ArrayLike, *, level: Level) -> float:
    """Return 1 − observed ÷ expected disagreement of a coincidence matrix; NaN if none can be expected.

    Raises:
        InvalidInput: for an unknown level.
    """
    total_K = coincidences_KK.sum(axis=0)
    total = float(total_K.sum())
    distance_KK = _distances(np.asarray(categories_K, np.float64), total_K, level)
    expected = float(total_K @ distance_KK @ total_K)
    if expected <= 0:
        return float("nan")
    return 1 - (total - 1) * float((coincidences_KK * distance_KK).sum()) / expected


def _distances(categories_K: Floats, total_K: Floats, level: Level) -> Floats:
    """Return the squared difference of every two categories."""
    first_KK, second_KK = np.meshgrid(categories_K, categories_K, indexing="ij")
    if level == "nominal":
        return np.asarray(first_KK != second_KK, np.float64)
    if level == "interval":
        return np.asarray((first_KK - second_KK) ** 2)
    if level == "ratio":
        sum_KK = first_KK + second_KK
        return np.asarray(((first_KK - second_KK) / np.where(sum_KK == 0, 1.0, sum_KK)) ** 2)
    if level == "ordinal":
        # Values up to the middle of each category: their difference is what lies between two categories.
        middle_K = np.cumsum(total_K) - total_K / 2
        return np.asarray((middle_K[:, None] - middle_K[None, :]) ** 2)
    raise InvalidInput("level", got=level, allowed="nominal, ordinal, interval or ratio")
