"""Intervals of shares of independent trials, and of the difference of two shares of the same trials."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fairlead.judgments.resampling import Interval

_Z = 1.959964


def wilson_interval(share: float, count: int, *, z: float = _Z) -> Interval:
    """Return the 95% interval of a share of `count` trials, within [0, 1] (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_interval(first: Sequence[bool], second: Sequence[bool]) -> Interval:
    """Return the 95% interval of the share of `first` minus that of `second`, of the same trials.

    Newcombe 1998 (Statistics in Medicine 17, 2635), method 10: Wilson's limits of both shares, joined by the
    correlation of the pairs. Unlike resampling, it has a width where no trial differs.
    """
    count = len(first)
    if not count:
        return -1.0, 1.0
    both = sum(one and other for one, other in zip(first, second, strict=True))
    one_share, other_share = sum(first) / count, sum(second) / count
    only_first, only_second = sum(first) - both, sum(second) - both
    neither = count - both - only_first - only_second
    low_1, high_1 = wilson_interval(one_share, count)
    low_2, high_2 = wilson_interval(other_share, count)
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(product - count / 2, 0.0)
    scale = math.sqrt(
        (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    )
    correlation = product / scale if scale else 0.0
    difference = one_share - other_share

    def half(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * correlation * one * other + other * other))

    return (
        difference - half(one_share - low_1, high_2 - other_share),
        difference + half(high_1 - one_share, other_share - low_2),
    )
