"""The picture of a comparison: gold against √KL and against episodes, a column for each method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.against_trl.outcome import Outcome, Point, mean_curve
from benchmarks.against_trl.report import GOLD, Comparison
from benchmarks.against_trl.sides import OURS, SIDES
from examples import plots
from examples.plots import COLORS, MUTED

_COLUMN_INCHES, _HEIGHT_INCHES = 3.4, 5.6


def draw(found: Sequence[Comparison], out: Path) -> None:
    """Draw it in the format of the suffix of `out`: thin lines are seeds, thick ones their mean."""
    with mpl.rc_context({**plots.STYLE, "savefig.facecolor": "white"}):
        figure = Figure(figsize=(_COLUMN_INCHES * len(found), _HEIGHT_INCHES), layout="constrained")
        rows = figure.subplots(2, len(found), squeeze=False, sharey=True)
        for column, one in enumerate(found):
            above, below = rows[0][column], rows[1][column]
            _curves(above, one, lambda point: math.sqrt(max(0.0, point.kl)))
            _curves(below, one, lambda point: float(point.episodes))
            for axes in (above, below):
                # Neighbouring panels must not touch.
                axes.locator_params(axis="x", nbins=4)
            above.set_title(f"{one.method.title}: ours and TRL {one.method.release}")
            above.set_xlabel("√KL to SFT, √nats per answer")
            below.set_xlabel("episodes")
            below.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
            below.axhline(GOLD, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for row in rows:
            row[0].set_ylabel("gold, held-out prompts")
        rows[0][0].legend(fontsize=9, loc="lower right")
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=150)


def _curves(axes: Any, one: Comparison, x: Callable[[Point], float]) -> None:  # noqa: ANN401 - matplotlib's own type
    for side, color in zip(SIDES, COLORS, strict=False):
        outcomes: Sequence[Outcome] = one.sides[side]
        for outcome in outcomes:
            _line(axes, outcome.points, x, color=color, linewidth=0.8, alpha=0.35)
        name = "Fairlead" if side == OURS else "TRL"
        mean = mean_curve(outcomes)
        _line(axes, mean, x, color=color, linewidth=2.0, marker="o", markersize=4, label=name)


def _line(axes: Any, points: Sequence[Point], x: Callable[[Point], float], **style: Any) -> None:  # noqa: ANN401
    axes.plot([x(point) for point in points], [point.gold for point in points], **style)
