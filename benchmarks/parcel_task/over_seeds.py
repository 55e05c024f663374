"""Means over seeds with intervals: seeds are independent; updates and answers of one run are not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy import stats

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95% interval over seeds (Student's t); NaN of one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Return mean ± half of the interval, as text; the mean of a single value."""
    mean, half = interval(values)
    # Without the sign of a rounded −0.
    text = f"{round(mean, digits) + 0.0:.{digits}f}"
    return text if math.isnan(half) else f"{text} ± {half:.{digits}f}"
