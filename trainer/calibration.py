"""Intervals of a reward model's accuracy, and the temperature that reduces its calibration error.

Everything is computed from margins: the score of the preferred response minus that of the other one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import brentq

from fairlead.judgments.calibration import accuracy, expected_calibration_error
from fairlead.judgments.resampling import ratio_interval
from fairlead.judgments.shares import wilson_interval

MIN_PAIRS = 30
"""With fewer comparisons a temperature is meaningless: its standard error is about half its value."""
FOLDS = 5
"""Folds of prompts, so that a temperature is judged on pairs that it was not fitted to."""
_LARGEST_SLOPE = 1e4


def interval_by_prompt(margins: Mapping[str, Sequence[float]], *, seed: int) -> tuple[float, float]:
    """Return the 95% interval of the accuracy over all pairs, by resampling prompts with replacement.

    Pairs of one prompt share its difficulty and its responses, so they carry less information than as many
    independent trials; Wilson's interval is too narrow (Efron 1979, resampling the independent unit).
    Where all prompts have the same accuracy, resampling says nothing: then it is Wilson's of the prompts.
    """
    groups = [found for found in margins.values() if found]
    if not groups:
        return 0.0, 1.0
    shares_G = [accuracy(found) for found in groups]
    if len(set(shares_G)) == 1:
        return wilson_interval(shares_G[0], len(groups))
    right_G = [share * len(found) for share, found in zip(shares_G, groups, strict=True)]
    return ratio_interval(right_G, [len(found) for found in groups], seed=seed)


def fit_temperature(margins: Sequence[float]) -> float | None:
    """Return the T > 0 that maximises the likelihood σ(margin / T) of these comparisons.

    Temperature scaling (Guo et al. 2017, section 4.2): the mean of log(1 + exp(−margin·b)) is convex in
    b = 1/T, so its derivative has at most one root. None if there is no meaningful T: fewer than MIN_PAIRS
    pairs, margins that are negative on average (T would be infinite), or no wrong pair (T would be 0).
    """
    margins_P = np.asarray(margins, dtype=np.float64)
    if len(margins_P) < MIN_PAIRS or not np.isfinite(margins_P).all():
        return None
    scale = float(np.abs(margins_P).mean())
    if scale == 0.0 or margins_P.mean() <= 0 or (margins_P >= 0).all():
        return None
    unit_P = margins_P / scale

    def slope(inverse: float) -> float:
        return float(-(unit_P / (1 + np.exp(np.minimum(unit_P * inverse, 500.0)))).mean())

    if slope(_LARGEST_SLOPE) <= 0:
        return None
    return scale / float(brentq(slope, 0.0, _LARGEST_SLOPE, xtol=1e-12, rtol=1e-10))


def calibrated_error(margins: Mapping[str, Sequence[float]]) -> float:
    """Return the calibration error of margins, each divided by a temperature fitted to other prompts.

    NaN if the pairs of other prompts do not determine a temperature.
    """
    groups = [found for found in margins.values() if found]
    divided: list[float] = []
    for fold in range(FOLDS):
        temperature = fit_temperature(
            [margin for place, group in enumerate(groups) if place % FOLDS != fold for margin in group]
        )
        if temperature is None:
            return float("nan")
        divided += [margin / temperature for group in groups[fold::FOLDS] for margin in group]
    return expected_calibration_error(divided)
