"""Pictures of over-optimisation: gold and proxy over √KL with fitted laws, and what guards change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.overoptimization import fits, report
from benchmarks.overoptimization.learning_runs import PLAIN
from benchmarks.overoptimization.proxies import SINGLE
from benchmarks.overoptimization.report import Found
from benchmarks.parcel_task.lab import Size
from benchmarks.parcel_task.learning import Curve
from benchmarks.parcel_task.reward_models import PEOPLE_UNIT
from examples import plots
from examples.parcel_help.break_it import smooth
from examples.plots import COLORS, INK, MUTED

_COLUMN_INCHES, _ROW_INCHES = 3.3, 3.6
_MARKERS = ("o", "s", "^", "D", "v", "P")
_X = "√KL to the policy at the start"


def draw_all(found: Found, folder: Path, suffix: str) -> None:
    """Draw all pictures for which runs have finished, as `overoptimization-NAME.SUFFIX`."""
    for name, draw, there in (
        ("best-of-n", _best_of, found.grid),
        ("rloo", _learning, found.runs(guarded=False)),
        ("guards", _guards, found.guards or found.runs(guarded=True)),
    ):
        if there:
            with mpl.rc_context({**plots.STYLE, "savefig.facecolor": "white"}):
                figure = Figure(layout="constrained")
                draw(figure, found)
                out = folder / f"overoptimization-{name}.{suffix}"
                metadata = {"Date": None, "Title": out.stem} if suffix == "svg" else None
                figure.savefig(out, metadata=metadata, dpi=150)


def _columns(figure: Any, sizes: Sequence[Size]) -> list[Any]:  # noqa: ANN401 - matplotlib's own type
    figure.set_size_inches(_COLUMN_INCHES * max(2, len(sizes)), _ROW_INCHES)
    found = list(figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0])
    for axes, size in zip(found, sizes, strict=True):
        axes.set_title(f"reward model {size}", fontsize=10)
        axes.set_xlabel(_X)
        axes.axhline(0, color=MUTED, linewidth=0.8)
    found[0].set_ylabel("gain in gold (solid, law dashed);\nclaimed by the proxy (dotted)")
    return found


def _best_of(figure: Any, found: Found) -> None:  # noqa: ANN401
    groups = found.best_of()
    sizes = sorted({size for size, _ in groups}, key=lambda size: size.width)
    counts = sorted({tasks for _, tasks in groups})
    for axes, size in zip(_columns(figure, sizes), sizes, strict=True):
        for place, tasks in enumerate(counts):
            if (size, tasks) not in groups:
                continue
            curves = [one for _, one in groups[size, tasks]]
            x = curves[0].distances
            gold = np.mean([one.gold_gains.mean(axis=0) for one in curves], axis=0)
            proxy = PEOPLE_UNIT * np.mean([one.proxy_gains.mean(axis=0) for one in curves], axis=0)
            law = fits.mean(report.fits_of_best_of(curves))
            style: Any = {"color": COLORS[place]}
            axes.plot(x, gold, marker=_MARKERS[place], markersize=4, label=f"{tasks} tasks", **style)
            axes.plot(x, [law.at(d) for d in x], linestyle="--", linewidth=1, **style)
            axes.plot(x, proxy, linestyle=":", linewidth=1.2, **style)
    figure.axes[0].legend(fontsize=8, loc="upper left")


def _learning(figure: Any, found: Found) -> None:  # noqa: ANN401
    groups = found.runs(guarded=False)
    sizes = sorted({size for size, _, _ in groups}, key=lambda size: size.width)
    counts = sorted({tasks for _, tasks, _ in groups})
    for axes, size in zip(_columns(figure, sizes), sizes, strict=True):
        for place, tasks in enumerate(counts):
            seeds = groups.get((size, tasks, PLAIN), {})
            for number, curve in enumerate(seeds.values()):
                _line(axes, curve, found.start, COLORS[place], label="" if number else f"{tasks} tasks")
            if seeds:
                law = fits.mean(report.fits_of_learning(list(seeds.values()), found.start))
                end = max(max(report.gains(one, found.start)[0]) for one in seeds.values())
                x = np.linspace(0.05, end, 60)
                axes.plot(x, [law.at(d) for d in x], linestyle="--", linewidth=1.8, color=COLORS[place])
    figure.axes[0].legend(fontsize=8, loc="upper left")


def _line(axes: Any, curve: Curve, start: float, color: str, *, label: str) -> None:  # noqa: ANN401
    """Draw a run: gold and the proxy's claim, averaged over three updates."""
    x = smooth([math.sqrt(max(0.0, point.kl)) for point in curve.points])
    first = curve.points[0].proxy
    claims = smooth([PEOPLE_UNIT * (point.proxy - first) for point in curve.points])
    golds = smooth([point.gold - start for point in curve.points])
    axes.plot(x, golds, color=color, linewidth=1.3, alpha=0.8, label=label)
    axes.plot(x, claims, color=color, linewidth=1, linestyle=":", alpha=0.7)


def _guards(figure: Any, found: Found) -> None:  # noqa: ANN401
    figure.set_size_inches(2 * 4.6, 5.0)
    left, right = figure.subplots(1, 2)
    left.set_title("best-of-n", fontsize=10)
    right.set_title("RLOO, β = 0 but for the penalty", fontsize=10)
    by_seed = list(found.guards.values())
    for place, name in enumerate(by_seed[0].curves if by_seed else ()):
        curves = [one.curves[name] for one in by_seed]
        gold = np.mean([one.gold_gains.mean(axis=0) for one in curves], axis=0)
        color = INK if name == SINGLE else COLORS[(place - 1) % len(COLORS)]
        marker = _MARKERS[place % len(_MARKERS)]
        left.plot(curves[0].distances, gold, color=color, marker=marker, markersize=4, label=name)
    lines = {PLAIN: found.unguarded()} if found.unguarded() else {}
    lines |= {guard: seeds for (_, _, guard), seeds in found.runs(guarded=True).items()}
    for place, (name, seeds) in enumerate(lines.items()):
        if not seeds:
            continue
        x, y = (np.mean(values, axis=0) for values in zip(*_smoothed(seeds, found.start), strict=True))
        color = INK if name == PLAIN else COLORS[(place - 1) % len(COLORS)]
        marker = _MARKERS[place % len(_MARKERS)]
        right.plot(x, y, color=color, marker=marker, markersize=4, markevery=4, label=name)
    for axes in (left, right):
        axes.set_xlabel(_X)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    left.set_ylabel("gain in gold, mean over seeds")


def _smoothed(seeds: dict[int, Curve], start: float) -> list[tuple[list[float], list[float]]]:
    found = (report.gains(one, start) for one in seeds.values())
    return [(smooth(x), smooth(y)) for x, y in found]
