"""Intervals by resampling independent groups, such as tasks or prompts (Efron 1979).

Judgments of one task share its difficulty and its answers, and pairs of one ranking share their answers. They
carry less information than as many independent trials, so the task is drawn with all that belongs to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1_000
"""Bootstrap samples of an interval."""
LEVEL = (0.025, 0.975)
"""Quantiles that enclose a 95% interval."""
_GATHERED = 1 << 22
"""Values that are held in memory at a time."""

Interval = tuple[float, float]


def resampled_sums(
    values_GC: NDArray[np.float64], *, seed: int, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Return [R, C]: the sum over as many groups as there are, drawn with replacement, for each resample.

    Args:
        values_GC: values to sum of each group.
        seed: the same seed draws the same groups.
        resamples: how many times all groups are drawn.
    """
    generator = np.random.default_rng(seed)
    groups = len(values_GC)
    step = max(1, _GATHERED // max(1, values_GC.size))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    parts = [values_GC[generator.integers(groups, size=(size, groups))].sum(axis=1) for size in sizes]
    return np.concatenate(parts)


def ratio_interval(
    numerator_G: Sequence[float] | NDArray[np.float64],
    denominator_G: Sequence[float] | NDArray[np.float64],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the 95% interval of Σ numerator ÷ Σ denominator; resamples without a denominator are left out.

    With two columns of ones this is that of a share whose groups have different sizes.
    """
    both_G2 = np.stack([np.asarray(numerator_G, np.float64), np.asarray(denominator_G, np.float64)], axis=1)
    sums_R2 = resampled_sums(both_G2, seed=seed, resamples=resamples)
    sums_R2 = sums_R2[sums_R2[:, 1] > 0]
    return quantiles(sums_R2[:, 0] / sums_R2[:, 1])


def mean_interval(
    values: Sequence[float] | NDArray[np.float64], *, seed: int, resamples: int = RESAMPLES
) -> Interval:
    """Return the 95% interval of the mean of independent values."""
    values_G = np.asarray(values, np.float64)
    return quantiles(resampled_sums(values_G[:, None], seed=seed, resamples=resamples)[:, 0] / len(values_G))


def quantiles(figures_R: NDArray[np.float64]) -> Interval:
    """Return the ends of the 95% interval of a figure, given its value on each resample."""
    low, high = np.quantile(figures_R, LEVEL)
    return float(low), float(high)
