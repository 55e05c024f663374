"""Axes: round tick values, short numbers, and fewer points than pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_POINTS = 160
"""Points of a curve that are drawn; more would not be seen, and would make the page larger."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values and where they lie on an axis."""

    low: float
    """Value at the start."""
    high: float
    """Value at the end; above `low`."""

    def share(self, value: float) -> float:
        """Return where a value lies between the start (0) and the end (1) of the axis."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int) -> list[float]:
        """Return about `count` round values within the range."""
        step = _round_step((self.high - self.low) / max(1, count))
        first = math.ceil(self.low / step - 1e-9)
        last = int((self.high / step + 1e-9) // 1)
        return [number * step for number in range(first, last + 1)]


def axis_of(values: Sequence[float], *, margin: float = 0.0, start: float | None = None) -> Axis:
    """Return the axis that holds all values.

    Args:
        values: at least one, all finite.
        margin: free space at both ends, as a share of the range.
        start: the axis begins at this value or below.
    """
    low, high = min(values), max(values)
    if start is not None:
        low = min(low, start)
    size = high - low
    if size <= 1e-12 * max(abs(low), abs(high), 1e-300):
        half = abs(low) * 0.1 or 1.0
        return Axis(low - half, high + half)
    at_start = start is not None and low == start
    return Axis(low if at_start else low - margin * size, high + margin * size)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Return the ticks as text with the same number of decimals."""
    if not ticks:
        return []
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) or 1.0
    if max(map(abs, ticks)) < 0.001 and step < 0.001:
        digits = 2 + int(math.log10(max(1.0, max(map(abs, ticks)) / step)))
        return [f"{tick:.{digits}g}" if tick else "0" for tick in ticks]
    decimals = max(0, -int((math.log10(step) + 1e-9) // 1))
    # A step of 2.5 needs one more than its size says.
    if abs(round(step, decimals) - step) > step * 1e-6:
        decimals += 1
    return [f"{tick + 0.0:,.{decimals}f}" for tick in ticks]


def thinned(
    x: Sequence[float], y: Sequence[float], *, most: int = MAX_POINTS
) -> tuple[list[float], list[float]]:
    """Return at most about `most` points of a curve; the least and the greatest of every part stay."""
    if len(x) <= most:
        return list(x), list(y)
    parts = most // 2
    kept: set[int] = {0, len(x) - 1}
    for part in range(parts):
        indices = range(part * len(x) // parts, (part + 1) * len(x) // parts)
        kept.add(min(indices, key=y.__getitem__))
        kept.add(max(indices, key=y.__getitem__))
    order = sorted(kept)
    return [x[i] for i in order], [y[i] for i in order]


def _round_step(size: float) -> float:
    power = 10.0 ** int(math.log10(size) // 1)
    return next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= size * (1 - 1e-9)) * power
