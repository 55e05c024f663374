"""Whether judgments depend on where an answer was shown, and on how long it is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from fairlead.judgments.judgment import Judgment
from fairlead.judgments.maximum import Floats, maximum
from fairlead.judgments.resampling import Interval, ratio_interval


@dataclass(frozen=True, slots=True)
class PositionBias:
    """How often the answer shown at each position is ranked first."""

    first_places: Mapping[int, tuple[int, ...]]
    """Of judgments with K answers, by K: how often each of the K positions held the best answer."""
    judgments: int
    """Judgments with a known order and one best answer."""
    tied: int
    """Judgments with a known order whose first place is tied, which do not count."""
    chi_square: float
    """Pearson's χ² against equal shares, summed over K."""
    degrees: int
    """Its degrees of freedom: K − 1 for each K."""
    p_value: float | None
    """Probability of so high a χ² without a bias, if each order was drawn at random; None without
    judgments."""

    def as_json(self) -> dict[str, object]:
        """Return the fields for a report."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How often the longer of two answers is preferred."""

    longer_wins: float | None
    """Share of comparisons whose longer answer is preferred; None without comparisons."""
    interval: Interval | None
    """95% interval of the share, by resampling tasks; None with fewer than two tasks."""
    slope: float | None
    """b in odds = (length ÷ length)^b, where both lengths are increased by 1: with 1 an answer of twice the
    length has twice the odds. Infinite if the longer answer, or the shorter one, always wins."""
    compared: int
    """Comparisons: pairs of answers of different lengths that a labeler ordered."""

    def as_json(self) -> dict[str, object]:
        """Return the fields for a report; an infinite slope is None."""
        bounded = self.slope is not None and math.isfinite(self.slope)
        return {**asdict(self), "slope": self.slope if bounded else None}


def position_bias(judgments: Iterable[Judgment]) -> PositionBias:
    """Return how first places depend on the position; judgments without an order are left out."""
    counts: dict[int, list[int]] = {}
    tied = 0
    for one in judgments:
        if not one.shown:
            continue
        best, size = one.best, len(one.shown)
        if len(best) > 1:
            tied += 1
            continue
        counts.setdefault(size, [0] * size)[one.shown.index(best[0])] += 1
    chi_square = sum(
        sum((count - sum(found) / size) ** 2 for count in found) / (sum(found) / size)
        for size, found in counts.items()
    )
    degrees = sum(size - 1 for size in counts)
    return PositionBias(
        first_places={size: tuple(counts[size]) for size in sorted(counts)},
        judgments=sum(map(sum, counts.values())),
        tied=tied,
        chi_square=chi_square,
        degrees=degrees,
        p_value=chi_square_tail(chi_square, degrees) if counts else None,
    )


def length_bias(judgments: Iterable[Judgment], *, seed: int) -> LengthBias:
    """Return how preferences depend on the length; judgments without lengths are left out.

    The slope is that of a logistic regression of the verdicts on the logarithm of the ratio of lengths,
    without an intercept, since swapping the two answers must flip the sign.

    Args:
        judgments: the judgments.
        seed: of the resampling.
    """
    longer: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    ratios: list[float] = []
    for one in judgments:
        for ratio in _log_ratios(one):
            longer[one.task][0] += ratio > 0
            longer[one.task][1] += 1
            ratios.append(ratio)
    if not ratios:
        return LengthBias(None, None, None, 0)
    wins_T, compared_T = np.array(list(longer.values()), np.float64).T
    return LengthBias(
        longer_wins=float(wins_T.sum() / compared_T.sum()),
        interval=ratio_interval(wins_T, compared_T, seed=seed) if len(longer) > 1 else None,
        slope=_slope(ratios),
        compared=len(ratios),
    )


def chi_square_tail(value: float, degrees: int) -> float:
    """Return the probability that χ² with whole degrees of freedom is at least a value.

    The regularised upper incomplete gamma function Q(degrees/2, value/2), by its recurrence in steps of 1
    from Q(1, x) = exp(−x) or Q(½, x) = erfc(√x) (Abramowitz and Stegun 1964, 6.5.22 and 26.4.4 to 26.4.5).
    """
    half = value / 2
    if half <= 0:
        return 1.0
    shape = 0.5 if degrees % 2 else 1.0
    tail = math.erfc(math.sqrt(half)) if degrees % 2 else math.exp(-half)
    while shape < degrees / 2:
        tail += math.exp(shape * math.log(half) - half - math.lgamma(shape + 1))
        shape += 1
    return min(1.0, tail)


def _log_ratios(one: Judgment) -> Iterable[float]:
    """Yield log of (length of the preferred answer ÷ that of the other) for pairs that differ in both."""
    if not one.lengths:
        return
    for first, second in combinations(one.ranks, 2):
        gap = one.ranks[second] - one.ranks[first]
        ratio = math.log1p(one.lengths[first]) - math.log1p(one.lengths[second])
        if gap and ratio:
            yield ratio if gap > 0 else -ratio


def _slope(ratios: Sequence[float]) -> float:
    ratios_V = np.array(ratios)
    if (ratios_V > 0).all() or (ratios_V < 0).all():
        return math.copysign(math.inf, ratios[0])

    def objective(slope_1: Floats) -> tuple[float, Floats, Floats]:
        margins_V = ratios_V * slope_1[0]
        wrong_V = np.exp(-np.logaddexp(0.0, margins_V))
        value = -float(np.logaddexp(0.0, -margins_V).sum())
        curvature = float((ratios_V**2 * wrong_V * (1 - wrong_V)).sum())
        return value, np.array([float(ratios_V @ wrong_V)]), np.array([[curvature]])

    return float(maximum(objective, np.zeros(1))[0])
