"""Labels of points in a picture, in a column at its right so that they never overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_FONT_SIZE = 9
_LINE_HEIGHT = 1.35
_MARGIN = 0.05
"""Between the axes and the labels, as a fraction of their width."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A point with its label."""

    text: str
    """The label."""
    x: float
    """In units of the x axis."""
    y: float
    """In units of the y axis."""
    color: str
    """Of the text."""


def label(axes: Any, points: Sequence[Labelled], *, line: str) -> None:  # noqa: ANN401 - matplotlib's own type
    """Write the labels at the right of the axes, each as near to the height of its point as the others allow.

    Call it when everything else is drawn, since it fixes the limits of the axes.

    Args:
        axes: where the points are.
        points: the labels.
        line: colour of the lines from points to labels.
    """
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    axes.set_ylim(low, high)
    axes.set_xlim(left, right)
    height_points = axes.get_position().height * axes.figure.get_figheight() * 72
    step = _FONT_SIZE * _LINE_HEIGHT / height_points
    ordered = sorted(points, key=lambda point: point.y)
    places = spread([(point.y - low) / (high - low) for point in ordered], step=step)
    edge = right + _MARGIN * (right - left)
    for point, place in zip(ordered, places, strict=True):
        axes.annotate(
            point.text,
            xy=(point.x, point.y),
            xytext=(edge, low + place * (high - low)),
            color=point.color,
            fontsize=_FONT_SIZE,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line, "linewidth": 0.5, "alpha": 0.6, "shrinkB": 4},
        )


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
