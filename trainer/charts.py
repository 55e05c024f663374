"""The charts of a report, as SVG in data URIs, so that a page needs no other file.

Functions that turn numbers into pictures of one style. Knows nothing about run folders or pages.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
COLORS = ("#1f6f8b", "#d9822b", "#5a8f4e", "#a4508b", "#7b6d5d", "#c0504d")

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "path",
    "svg.hashsalt": "fairlead",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


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
    """What happened there; written along the line."""
    alarm: bool = False
    """Whether it is drawn in the colour of a problem."""


def lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_min: float | None = None,
    marks: Sequence[Mark] = (),
    wide: bool = False,
) -> str:
    """Draw curves over a common x axis.

    Args:
        curves: x and y values by name.
        x_label: label of the x axis.
        y_min: the y axis starts at this value or below.
        marks: vertical lines.
        wide: draw at the full width of a page.
    """
    figure, axes = _axes(9.4, 3.4) if wide else _axes(4.6, 2.5)
    for color, (name, (x, y)) in zip(COLORS, curves.items(), strict=False):
        axes.plot(x, y, color=color, linewidth=2, label=name, marker="o" if len(x) < 3 else None)
    if y_min is not None:
        axes.set_ylim(bottom=min(y_min, axes.get_ylim()[0]))
    for mark in marks:
        draw_mark(axes, mark)
    axes.set_xlabel(x_label)
    if len(curves) > 1:
        axes.legend(fontsize=9)
    return _uri(figure)


def calibration(bins: Sequence[Bin]) -> str:
    """Draw accuracy over confidence; the size of a dot shows the number of comparisons."""
    figure, axes = _axes(4.6, 3.2)
    axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    largest = max((found.count for found in bins), default=1)
    axes.plot([b.confidence for b in bins], [b.accuracy for b in bins], color=COLORS[0], linewidth=1)
    axes.scatter(
        [found.confidence for found in bins],
        [found.accuracy for found in bins],
        s=[20 + 130 * found.count / largest for found in bins],
        color=COLORS[0],
        zorder=3,
    )
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(min([0.45, *(found.accuracy - 0.05 for found in bins)]), 1.03)
    axes.set_xlabel("confidence of the reward model")
    axes.set_ylabel("share of correct choices")
    return _uri(figure)


def bars(
    values: Mapping[str, float],
    *,
    x_label: str,
    limit: float | None = None,
    mark: float | None = None,
    wide: bool = False,
) -> str:
    """Draw horizontal bars with their values; `mark` adds a vertical line, for example at 0.5."""
    figure, axes = _axes(9.4 if wide else 4.6, 0.75 + 0.42 * len(values))
    names = list(values)
    for row, (name, color) in enumerate(zip(names, COLORS * len(names), strict=False)):
        axes.barh(row, values[name], color=color, height=0.6)
        axes.text(values[name], row, f" {values[name]:.2f}", va="center", color=INK)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    if limit is not None:
        axes.set_xlim(0, limit)
    if mark is not None:
        axes.axvline(mark, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel(x_label)
    return _uri(figure)


def histograms(values: Mapping[str, Sequence[float]], *, x_label: str) -> str:
    """Draw a histogram for each group of values, over common bins."""
    figure, axes = _axes(4.6, 2.5)
    every = [value for group in values.values() for value in group]
    low, high = min(every), max(every)
    width = (high - low) / 24 or 1.0
    edges = [low + width * step for step in range(25)]
    colors = COLORS[1::-1] if len(values) < 3 else (COLORS[1], COLORS[4], COLORS[0])
    for color, (name, group) in zip(colors, values.items(), strict=False):
        weights = [100 / len(group)] * len(group)
        axes.hist(group, bins=edges, weights=weights, color=color, alpha=0.55, label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel("% of answers")
    axes.legend(fontsize=9)
    return _uri(figure)


def timeline(spans: Sequence[tuple[str, float, float]], *, rows: Sequence[str]) -> str:
    """Draw spans of time, (row, start, end) in seconds, one row for each name."""
    figure, axes = _axes(9.4, 0.75 + 0.34 * len(rows))
    for number, (row, color) in enumerate(zip(rows, COLORS * len(rows), strict=False)):
        stretches = [(start, end - start) for name, start, end in spans if name == row]
        axes.broken_barh(stretches, (number - 0.36, 0.72), color=color, linewidth=0)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds since the stage began")
    axes.margins(x=0.005)
    return _uri(figure)


def draw_mark(axes: Any, mark: Mark, *, bottom: bool = False) -> None:  # noqa: ANN401 - matplotlib's own type
    """Draw a vertical line with its text at the top, or at the bottom."""
    color = COLORS[-1] if mark.alarm else MUTED
    axes.axvline(mark.x, color=color, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    if mark.text:
        side, height = ("bottom", 0.02) if bottom else ("top", 0.98)
        style: Any = {"rotation": 90, "ha": "right", "va": side, "fontsize": 8, "color": color}
        place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
        axes.annotate(mark.text, (mark.x, height), xytext=(-3, 0), **place, **style)


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def _uri(figure: Figure) -> str:
    with mpl.rc_context(STYLE), io.BytesIO() as file:
        # No date, so that the same run gives the same page.
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
