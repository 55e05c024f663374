"""Bootstrap intervals of means (Efron 1979), for the figures that examples report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1_000
"""Number of bootstrap samples for an interval."""


def bootstrap_interval(values: Sequence[float], *, seed: int) -> tuple[float, float]:
    """Return the 95% interval of the mean of independent values, by resampling with replacement."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.asarray(values)[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
