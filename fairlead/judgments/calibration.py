"""Accuracy and calibration of scores by margins: the score of the preferred response minus the other one."""

from __future__ import annotations

import math
from collections.abc import Sequence

BINS = 10
"""Bins of equal width over the confidence, from 0.5 to 1."""


def accuracy(margins: Sequence[float]) -> float:
    """Return the share of positive margins; equal scores count half. NaN without margins."""
    if not margins:
        return float("nan")
    return sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins) / len(margins)


def expected_calibration_error(margins: Sequence[float]) -> float:
    """Return the mean gap of confidence σ(|margin|) and accuracy over equal bins, weighted by their size.

    Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3. NaN without margins.
    """
    if not margins:
        return float("nan")
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for margin in margins:
        confidence = 1 / (1 + math.exp(-min(abs(margin), 500.0)))
        correct = 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0
        bins[min(BINS - 1, int((confidence - 0.5) * 2 * BINS))].append((confidence, correct))
    gaps = (abs(sum(c for c, _ in members) - sum(r for _, r in members)) for members in bins)
    return sum(gaps) / len(margins)
