"""The charts of a page, as SVG inside it: text is text, colours follow the scheme, figures show on hover.

A chart is as wide as its place: only the curves are stretched, never text or lines. Colours and sizes are in
page.css, and nothing needs an inline style, which the policy of the live page forbids. Knows numbers only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from markupsafe import Markup

from fairlead.local.numbers import number
from fairlead.report.scales import Axis, axis_of, thinned, tick_labels

_HEIGHT, _WIDE_HEIGHT, _SMALL_HEIGHT = 170, 230, 44
_WIDTH = 1_000
"""Units of the stretched part of a chart."""
_NUM_COLORS = 6
_MAX_READOUTS = 32
_SHOWN_LIMIT = 1.5
"""A limit is drawn if it is at most this many ranges of the data away; a further one is named at the edge."""
_MAX_SPANS = 300


@dataclass(frozen=True, slots=True)
class Bin:
    """Comparisons of similar confidence."""

    confidence: float
    """Mean probability of the response that the model prefers, 0.5 to 1."""
    accuracy: float
    """Share of comparisons in which that response was preferred."""
    count: int
    """Comparisons in the bin."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line."""

    x: float
    """Position on the x axis."""
    text: str = ""
    """What happened there."""
    alarm: bool = False
    """Whether it is drawn in the colour of a problem."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A horizontal line that values must not cross."""

    value: float
    """Where it is."""
    side: Literal["above", "below"]
    """The side on which values are bad."""
    level: Literal["warn", "stop"]
    """What crossing it means."""

    def __str__(self) -> str:
        return f"{self.level} {self.side} {number(self.value)}"


Curve = tuple[Sequence[float], Sequence[float]]
"""x and y values."""


def lines(
    curves: Mapping[str, Curve],
    *,
    x_label: str,
    y_min: float | None = None,
    marks: Sequence[Mark] = (),
    limits: Sequence[Limit] = (),
    wide: bool = False,
) -> Markup:
    """Draw curves over a common x axis; values that are not finite are left out.

    Args:
        curves: x and y values by name.
        x_label: label of the x axis.
        y_min: the y axis starts at this value or below.
        marks: vertical lines.
        limits: horizontal lines; those far from all values are only named.
        wide: draw at the full width of a page.
    """
    found = {name: _finite(*curve) for name, curve in curves.items()}
    shown = {name: curve for name, curve in found.items() if curve[0]}
    if not shown:
        return Markup('<p class="silent">no figures yet</p>')
    height = _WIDE_HEIGHT if wide else _HEIGHT
    values = [value for _, y in shown.values() for value in y]
    near, far = _near_and_far(limits, values if y_min is None else [*values, y_min])
    x_axis = axis_of([value for x, _ in shown.values() for value in x])
    y_axis = _with_space(axis_of([*values, *(limit.value for limit in near)], margin=0.06, start=y_min), far)
    plot = [
        *_grid(y_axis, height),
        *(_limit(limit, y_axis, height) for limit in near),
        *(_mark(mark, x_axis, height) for mark in marks if x_axis.low <= mark.x <= x_axis.high),
        *_curves(shown, x_axis, y_axis, height),
        *_far_limits(far, height),
        *_readouts(shown, x_axis, y_axis, height, x_label),
    ]
    description = "; ".join(_said(name, curve, x_label) for name, curve in shown.items())
    if limits:
        description += "; limits: " + ", ".join(map(str, limits))
    if named := [f"{mark.text} at {x_label} {number(mark.x)}" for mark in marks if mark.text]:
        description += "; " + ", ".join(named)
    return _figure(
        description,
        plot,
        height,
        y_axis,
        x_axis,
        x_label=x_label,
        names=list(shown) if len(shown) > 1 else [],
    )


def spark(curve: Curve, *, limits: Sequence[Limit] = (), description: str = "") -> Markup:
    """Draw a small curve without axes, with its limits."""
    x, y = _finite(*curve)
    if not x:
        return Markup("")
    near, _ = _near_and_far(limits, y)
    x_axis, y_axis = axis_of(x), axis_of([*y, *(limit.value for limit in near)], margin=0.12)
    body = [_limit(limit, y_axis, _SMALL_HEIGHT, named=False) for limit in near]
    body += _curves({"": (x, y)}, x_axis, y_axis, _SMALL_HEIGHT)
    return Markup(
        f'<svg class="spark" width="100%" height="{_SMALL_HEIGHT}" role="img" '
        f'aria-label="{escape(description)}">{"".join(body)}</svg>'
    )


def calibration(bins: Sequence[Bin]) -> Markup:
    """Draw accuracy over confidence; the size of a dot shows the number of comparisons."""
    height = _WIDE_HEIGHT
    x_axis = Axis(0.48, 1.02)
    y_axis = Axis(min([0.45, *(found.accuracy - 0.05 for found in bins)]), 1.05)
    largest = max((found.count for found in bins), default=1)
    ends = [(_x(x_axis.share(at)), _y(y_axis, at, height)) for at in (0.5, 1.0)]
    plot = [
        *_grid(y_axis, height),
        '<line class="mark" x1="{}" y1="{}" x2="{}" y2="{}"/>'.format(*ends[0], *ends[1]),
    ]
    for found in bins:
        radius = 3 + 7 * math.sqrt(found.count / largest)
        text = f"confidence {found.confidence:.2f}: {found.accuracy:.2f} of {found.count:,} are right"
        plot.append(
            f'<g class="point"><circle class="dot c0" cx="{_x(x_axis.share(found.confidence))}" '
            f'cy="{_y(y_axis, found.accuracy, height)}" r="{radius:.1f}"/>{_readout(text)}</g>'
        )
    description = "share of correct choices by confidence: " + ", ".join(
        f"{found.accuracy:.2f} at {found.confidence:.2f}" for found in bins
    )
    return _figure(
        description, plot, height, y_axis, x_axis, x_label="confidence of the reward model → share correct"
    )


def bars(
    values: Mapping[str, float],
    *,
    x_label: str,
    limit: float | None = None,
    mark: float | None = None,
    wide: bool = False,
    unit: str = "",
    decimals: int = 2,
) -> Markup:
    """Draw horizontal bars with their values.

    Args:
        values: by name.
        x_label: what the values are.
        limit: value of a bar of full length; the greatest value by default.
        mark: value of a vertical line, for example 0.5.
        wide: accepted for symmetry with `lines`; bars are as wide as their place.
        unit: written after each value.
        decimals: of each value.
    """
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    full = limit or max([*finite.values(), 1e-12])
    rows = []
    for name, value in finite.items():
        length = _x(min(1.0, max(0.0, value / full)))
        line = (
            ""
            if mark is None
            else f'<line class="mark" x1="{_x(mark / full)}" x2="{_x(mark / full)}" y1="-3" y2="19"/>'
        )
        rows.append(
            f'<div class="bar"><span class="bar-name">{escape(name)}</span>'
            f'<svg width="100%" height="16" aria-hidden="true"><rect class="track" width="100%" height="16"/>'
            f'<rect class="fill" width="{length}" height="16"/>{line}</svg>'
            f'<span class="bar-value">{value:.{decimals}f}{escape(unit)}</span></div>'
        )
    return Markup(f'<div class="bars">{"".join(rows)}<div class="axis-name">{escape(x_label)}</div></div>')


def histograms(values: Mapping[str, Sequence[float]], *, x_label: str) -> Markup:
    """Draw the distribution of each group of values as a stepped line, over common bins."""
    groups = {name: [value for value in group if math.isfinite(value)] for name, group in values.items()}
    groups = {name: group for name, group in groups.items() if group}
    if not groups:
        return Markup('<p class="silent">no figures yet</p>')
    every = [value for group in groups.values() for value in group]
    low, high = min(every), max(every)
    width = (high - low) / 24 or 1.0
    curves: dict[str, Curve] = {}
    for name, group in groups.items():
        counts = [0] * 24
        for value in group:
            counts[min(23, int((value - low) / width))] += 1
        x = [low + width * edge for edge in range(25) for _ in (0, 1)]
        y = [0.0, *(100 * count / len(group) for count in counts for _ in (0, 1)), 0.0]
        curves[name] = (x, y)
    height = _HEIGHT
    x_axis = Axis(low, low + 24 * width)
    y_axis = axis_of([value for _, y in curves.values() for value in y], margin=0.06, start=0.0)
    plot = [*_grid(y_axis, height), *_curves(curves, x_axis, y_axis, height, dots=False)]
    description = "; ".join(
        f"{name}: {len(group):,} values, mean {number(sum(group) / len(group))}, "
        f"from {number(min(group))} to {number(max(group))}"
        for name, group in groups.items()
    )
    names = list(groups) if len(groups) > 1 else []
    return _figure(
        description, plot, height, y_axis, x_axis, x_label=f"{x_label} → % of answers", names=names
    )


def timeline(spans: Sequence[tuple[str, float, float]], *, rows: Sequence[str]) -> Markup:
    """Draw spans of time, (row, start, end) in seconds, one row for each name; long pauses are cut short."""
    if not spans:
        return Markup('<p class="silent">no figures yet</p>')
    spans, pauses, total = _without_pauses(spans)
    seconds: dict[str, float] = {}
    drawn = []
    for row in rows:
        own = sorted((start, end) for name, start, end in spans if name == row)
        seconds[row] = sum(end - start for start, end in own)
        rects = "".join(
            f'<rect x="{_x(start / total)}" width="{_x(max((end - start) / total, 0.0008))}" height="14"/>'
            for start, end in _joined(own, total / _MAX_SPANS)
        )
        breaks = "".join(
            f'<line class="mark" x1="{_x(at / total)}" x2="{_x(at / total)}" y1="0" y2="14"/>'
            for at, _ in pauses
        )
        drawn.append(
            f'<div class="lane"><span class="bar-name">{escape(row)}</span>'
            f'<svg class="spans" width="100%" height="14" aria-hidden="true">{rects}{breaks}</svg></div>'
        )
    axis = Axis(0.0, total)
    description = "seconds by phase: " + ", ".join(f"{row} {number(round(seconds[row], 1))}" for row in rows)
    pause = "".join(f"; a pause of {number(round(length))} s is cut out" for _, length in pauses)
    return Markup(
        f'<div class="chart lanes" role="img" aria-label="{escape(description)}">{"".join(drawn)}'
        f'{_x_axis(axis)}<div class="axis-name">seconds since the stage began{escape(pause)}</div></div>'
    )


def _finite(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _near_and_far(limits: Sequence[Limit], values: Sequence[float]) -> tuple[list[Limit], list[Limit]]:
    low, high = min(values), max(values)
    size = (high - low) or abs(high) * 0.2 or 1.0
    near = [
        limit for limit in limits if low - _SHOWN_LIMIT * size <= limit.value <= high + _SHOWN_LIMIT * size
    ]
    return near, [limit for limit in limits if limit not in near]


def _with_space(axis: Axis, limits: Sequence[Limit]) -> Axis:
    """Return the axis with space for the names of limits that lie outside of it."""
    space = 0.1 * (axis.high - axis.low)
    above = any(limit.side == "above" for limit in limits)
    below = any(limit.side == "below" for limit in limits)
    return Axis(axis.low - space * below, axis.high + space * above)


def _x(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


def _y(axis: Axis, value: float, height: int) -> str:
    return f"{height * (1 - axis.share(value)):.1f}"


def _grid(axis: Axis, height: int) -> list[str]:
    heights = (_y(axis, tick, height) for tick in axis.ticks(5))
    return [f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>' for y in heights]


def _limit(limit: Limit, axis: Axis, height: int, *, named: bool = True) -> str:
    y = float(_y(axis, limit.value, height))
    top, size = (0.0, y) if limit.side == "above" else (y, height - y)
    text = ""
    if named:
        # Below the line, where there is no space above it.
        place = y - 5 if y > 16 else y + 13
        text = f'<text class="limit-name" x="4" y="{place:.1f}">{limit}</text>'
    return (
        f'<rect class="zone {limit.level}" y="{top:.1f}" width="100%" height="{max(0.0, size):.1f}"/>'
        f'<line class="limit {limit.level}" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>{text}'
    )


def _far_limits(limits: Sequence[Limit], height: int) -> list[str]:
    """Name the limits that lie outside the chart at its upper or lower edge."""
    found = []
    for side, arrow, y in (("above", "↑", 12), ("below", "↓", height - 5)):
        if named := ", ".join(str(limit) for limit in limits if limit.side == side):
            found.append(f'<text class="limit-name" x="4" y="{y}">{arrow} {named}</text>')
    return found


def _mark(mark: Mark, axis: Axis, height: int) -> str:
    share = axis.share(mark.x)
    name = ""
    if mark.text:
        side, offset = ("end", -4) if share > 0.6 else ("start", 4)
        place = f'x="{_x(share)}" dx="{offset}" y="{height - 6}"'
        name = f'<text class="mark-name {side}" {place}>{escape(mark.text)}</text>'
    line = f'<line class="mark" x1="{_x(share)}" x2="{_x(share)}" y1="0" y2="{height}"/>'
    return f'<g class="{"alarm" if mark.alarm else "note"}">{line}{name}</g>'


def _curves(
    curves: Mapping[str, Curve], x_axis: Axis, y_axis: Axis, height: int, *, dots: bool = True
) -> list[str]:
    drawn, ends = [], []
    for place, (x, y) in enumerate(curves.values()):
        color = f"c{place % _NUM_COLORS}"
        points = " ".join(
            f"{_WIDTH * x_axis.share(a):.0f},{_y(y_axis, b, height)}"
            for a, b in zip(*thinned(x, y), strict=True)
        )
        drawn.append(f'<polyline class="curve {color}" points="{points}"/>')
        if dots:
            at = _x(x_axis.share(x[-1]))
            ends.append(f'<circle class="dot {color}" cx="{at}" cy="{_y(y_axis, y[-1], height)}" r="3"/>')
    stretched = (
        f'<svg width="100%" height="{height}" viewBox="0 0 {_WIDTH} {height}" preserveAspectRatio="none">'
        f"{''.join(drawn)}</svg>"
    )
    return [stretched, *ends]


def _readouts(
    curves: Mapping[str, Curve], x_axis: Axis, y_axis: Axis, height: int, x_label: str
) -> list[str]:
    """Return invisible columns that show the figures of their x value under the pointer."""
    places = sorted({at for x, _ in curves.values() for at in x})
    if len(places) > _MAX_READOUTS:
        places = [places[i * (len(places) - 1) // (_MAX_READOUTS - 1)] for i in range(_MAX_READOUTS)]
    by_name = {name: dict(zip(x, y, strict=True)) for name, (x, y) in curves.items()}
    shares = [x_axis.share(at) for at in places]
    edges = [0.0, *((a + b) / 2 for a, b in itertools.pairwise(shares)), 1.0]
    found = []
    for at, left, right in zip(places, edges, edges[1:], strict=False):
        values = [(name, known[at]) for name, known in by_name.items() if at in known]
        one = len(by_name) == 1
        text = ", ".join(number(value) if one else f"{name} {number(value)}" for name, value in values)
        dots = "".join(
            f'<circle cx="{_x(x_axis.share(at))}" cy="{_y(y_axis, value, height)}" r="3"/>'
            for _, value in values[:1]
        )
        found.append(
            f'<g class="hit"><rect x="{_x(left)}" width="{_x(right - left)}" height="{height}"/>{dots}'
            f"{_readout(f'{x_label} {number(at)}: {text}')}</g>"
        )
    return found


def _readout(text: str) -> str:
    return f'<text x="100%" y="12">{escape(text)}</text>'


def _said(name: str, curve: Curve, x_label: str) -> str:
    x, y = curve
    if len(x) == 1:
        return f"{name}: {number(y[0])} at {x_label} {number(x[0])}"
    start, end = (f"{number(y[i])} at {x_label} {number(x[i])}" for i in (0, -1))
    return f"{name}: from {start} to {end}, lowest {number(min(y))}, highest {number(max(y))}"


def _figure(
    description: str,
    plot: Iterable[str],
    height: int,
    y_axis: Axis,
    x_axis: Axis,
    *,
    x_label: str,
    names: Sequence[str] = (),
) -> Markup:
    ticks = y_axis.ticks(5)
    labels = []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        y = min(height - 2.0, max(9.0, float(_y(y_axis, tick, height)) + 4))
        labels.append(f'<text x="100%" y="{y:.1f}">{label}</text>')
    legend = "".join(
        f'<span class="key c{place % _NUM_COLORS}">{escape(name)}</span>' for place, name in enumerate(names)
    )
    return Markup(
        f'<div class="chart" role="img" aria-label="{escape(description)}">'
        f'<div class="legend">{legend}</div>'
        f'<svg class="y-axis" height="{height}">{"".join(labels)}</svg>'
        f'<svg class="plot" width="100%" height="{height}">{"".join(plot)}</svg>'
        f'{_x_axis(x_axis)}<div class="axis-name">{escape(x_label)}</div></div>'
    )


def _x_axis(axis: Axis) -> str:
    ticks = axis.ticks(5)
    labels = []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        share = axis.share(tick)
        side = "start" if share < 0.04 else "end" if share > 0.96 else "middle"
        labels.append(f'<text class="{side}" x="{_x(share)}" y="13">{label}</text>')
    return f'<svg class="x-axis" width="100%" height="18">{"".join(labels)}</svg>'


def _joined(spans: Sequence[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    """Join spans that are closer together than can be seen."""
    found: list[tuple[float, float]] = []
    for start, end in spans:
        if found and start - found[-1][1] < gap and (found[-1][1] - found[-1][0] < gap or end - start < gap):
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _without_pauses(
    spans: Sequence[tuple[str, float, float]],
) -> tuple[list[tuple[str, float, float]], list[tuple[float, float]], float]:
    """Cut out times of more than a twentieth of the whole in which nothing happened.

    Returns:
        The spans, the cuts as (position, length), and the time that is left.
    """
    order = sorted(spans, key=lambda span: span[1])
    first, last = order[0][1], max(end for _, _, end in order)
    least = (last - first) / 20
    moved, pauses, removed, reached = [], [], 0.0, first
    for name, start, end in order:
        if start - reached > least:
            pauses.append((reached - first - removed, start - reached))
            removed += start - reached
        reached = max(reached, end)
        moved.append((name, start - first - removed, end - first - removed))
    return moved, pauses, max(1e-9, last - first - removed)
