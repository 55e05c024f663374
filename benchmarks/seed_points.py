"""A picture of what several seeds gave: a dot for each, a ring at the mean, labels that never overlap."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from examples import plots
from examples.plots import COLORS, INK, MUTED

_FONT_SIZE = 9
_LINE_HEIGHT = 1.35
_MARGIN = 0.05
"""Between the axes and the labels, as a fraction of their width."""


@dataclass(frozen=True, slots=True)
class Series:
    """The figures that one label names."""

    text: str
    """The label."""
    points: Sequence[tuple[float, float]]
    """x and y of each seed."""

    @property
    def mean(self) -> tuple[float, float]:
        """Mean of x and y."""
        xs, ys = _columns(self.points)
        return statistics.fmean(xs), statistics.fmean(ys)


def draw(
    series: Sequence[Series], start: Series, out: Path, *, x_label: str, y_label: str, joined: bool = False
) -> None:
    """Draw all series and the point that all runs start from, in the format of the suffix of `out`.

    Args:
        series: what is compared, in the order of their colours.
        start: a single point.
        out: the file.
        x_label: label of the x axis.
        y_label: label of the y axis.
        joined: connect the means in the order of `series`.
    """
    with mpl.rc_context({**plots.STYLE, "savefig.facecolor": "white"}):
        figure = Figure(figsize=(8.6, 5.4), layout="constrained")
        axes = figure.subplots()
        axes.scatter(*_columns(start.points), color=INK, s=36, marker="s")
        if joined:
            axes.plot(*_columns([one.mean for one in series]), color=MUTED, linewidth=1, zorder=1)
        colors = [COLORS[number % len(COLORS)] for number in range(len(series))]
        for one, color in zip(series, colors, strict=True):
            axes.scatter(*_columns(one.points), color=color, s=14, alpha=0.7, linewidths=0)
            x, y = one.mean
            axes.scatter([x], [y], s=70, facecolors="white", edgecolors=color, linewidths=1.8, zorder=3)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _label(axes, [start, *series], [INK, *colors])
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=150)


def _label(axes: Any, series: Sequence[Series], colors: Sequence[str]) -> None:  # noqa: ANN401 - matplotlib's own type
    """Write the labels at the right of the axes, each as near to the height of its mean as others allow."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    axes.set_ylim(low, high)
    axes.set_xlim(left, right)
    height_points = axes.get_position().height * axes.figure.get_figheight() * 72
    step = _FONT_SIZE * _LINE_HEIGHT / height_points
    ordered = sorted(zip(series, colors, strict=True), key=lambda pair: pair[0].mean[1])
    places = spread([(one.mean[1] - low) / (high - low) for one, _ in ordered], step=step)
    edge = right + _MARGIN * (right - left)
    line = {
        "arrowstyle": "-",
        "color": MUTED,
        "linewidth": 0.5,
        "alpha": 0.6,
        "relpos": (0, 0.5),
        "shrinkB": 4,
    }
    for (one, color), place in zip(ordered, places, strict=True):
        axes.annotate(
            one.text,
            xy=one.mean,
            xytext=(edge, low + place * (high - low)),
            color=color,
            fontsize=_FONT_SIZE,
            va="center",
            annotation_clip=False,
            arrowprops=line,
        )


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def spread(wanted: Sequence[float], *, step: float) -> list[float]:
    """Return places at least `step` apart, in the order of `wanted` (ascending) and near to it.

    Places that would be too near to one another become a block around the mean of what its members want.
    """
    blocks: list[list[float]] = []
    for place in wanted:
        blocks.append([place])
        while len(blocks) > 1 and _first(blocks[-1], step) - _last(blocks[-2], step) < step:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [_first(block, step) + step * index for block in blocks for index in range(len(block))]


def _first(block: Sequence[float], step: float) -> float:
    return sum(block) / len(block) - step * (len(block) - 1) / 2


def _last(block: Sequence[float], step: float) -> float:
    return _first(block, step) + step * (len(block) - 1)
