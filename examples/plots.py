"""The style of the pictures in the documents, which matplotlib draws, for examples and benchmarks.

Pages draw their own charts, see `fairlead.report.charts`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fairlead.report.charts import Mark

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


def picture_file(text: str) -> Path:
    """Return the file that a flag names for a picture, which is drawn after everything else.

    Raises:
        argparse.ArgumentTypeError: nothing could be drawn there.
    """
    file = Path(text)
    if file.suffix not in (".svg", ".png") or not file.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"got {text!r}, allowed: a .svg or .png file in a folder that exists"
        )
    return file


def draw_mark(axes: Any, mark: Mark, *, bottom: bool = False, right: bool = False) -> None:  # noqa: ANN401 - matplotlib's own type
    """Draw a vertical line with its text at the top, or at the bottom; left of the line, or right of it."""
    color = COLORS[-1] if mark.alarm else MUTED
    axes.axvline(mark.x, color=color, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    if mark.text:
        side, height = ("bottom", 0.02) if bottom else ("top", 0.98)
        style: Any = {
            "rotation": 90,
            "ha": "left" if right else "right",
            "va": side,
            "fontsize": 8,
            "color": color,
        }
        place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
        axes.annotate(mark.text, (mark.x, height), xytext=(3 if right else -3, 0), **place, **style)
