"""How good a reward model's comparisons are: accuracy with its interval, calibration error.

Everything is computed from margins, the score of the preferred response less that of the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 1_000
"""Draws behind a bootstrap interval."""
BINS = 10
"""Bins of equal width over the confidence, from 0.5 to 1."""


def accuracy(margins: Sequence[float]) -> float:
    """Share of positive margins; equal scores count half. NaN for none."""
    if not margins:
        return float("nan")
    return sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins) / len(margins)


def wilson_interval(share: float, count: int, *, z: float = 1.959964) -> tuple[float, float]:
    """95% interval of a share of `count` trials (Wilson 1927); it stays within [0, 1]."""
    if not count:
        return 0.0, 1.0
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def interval_by_prompt(margins: Mapping[str, Sequence[float]], *, seed: int) -> tuple[float, float]:
    """95% interval of the accuracy over all pairs, by drawing prompts again with replacement.

    Pairs of one prompt share its difficulty and its responses, so they say less than as many independent
    trials do; Wilson's interval is too narrow for them (Efron 1979, resampling the independent unit).
    """
    groups = [found for found in margins.values() if found]
    if not groups:
        return 0.0, 1.0
    right_G = np.array([accuracy(found) * len(found) for found in groups])
    count_G = np.array([len(found) for found in groups])
    drawn = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
    low, high = np.quantile(right_G[drawn].sum(axis=1) / count_G[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def expected_calibration_error(margins: Sequence[float]) -> float:
    """Mean gap between confidence σ(|margin|) and accuracy over equal bins of confidence, by their weight.

    Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3. NaN for no margins.
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
