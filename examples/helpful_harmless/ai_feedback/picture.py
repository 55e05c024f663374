"""Draw accuracy against labels: of one source, and of mixtures by their labels by people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from examples import plots
from examples.helpful_harmless.ai_feedback import judges
from examples.plots import COLORS, INK, MUTED

Row = Mapping[str, Any]
PEOPLE = ""
"""The name of people where the others are those of judges."""
_MARKERS = "osD^vPX"


def draw(figures: Mapping[str, Any], out: Path) -> None:
    """Draw the picture in the format of the suffix of `out`, such as .svg."""
    arms = [row for row in figures["arms"] if not row["weighted"]]
    sources = [row for row in arms if not (row["people"] and row["judged"])]
    learnt = max(row["people"] for row in arms)
    mixed = [row for row in arms if row["people"]]
    whole = next(row for row in sources if row["people"] == learnt)
    with mpl.rc_context({**plots.STYLE, "savefig.facecolor": "white"}):
        figure = Figure(figsize=(12.0, 5.4), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        known = tuple(judges.KNOWN)
        real = tuple(name for name in judges.TITLES if name not in known)
        _panel(panels[0], sources, (PEOPLE, *known), "people + judged")
        _panel(panels[1], sources, (PEOPLE, *real, judges.RANDOM), "people + judged")
        _panel(panels[2], mixed, (PEOPLE, *known, "head", "likelihood"), "people", whole=whole)
        for axes, text in zip(panels, ("judges of known accuracy", "real judges", "mixtures"), strict=True):
            axes.set_title(text, fontsize=10, loc="left")
            axes.set_xlabel("labels, all by one source")
        panels[2].set_xlabel(f"labels by people; a judge adds the rest of {learnt}")
        panels[0].set_ylabel("accuracy on held-out pairs of people")
        lines = {
            text: handle
            for axes in panels
            for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            lines.values(), lines.keys(), fontsize=8, loc="outside lower center", ncols=3, frameon=False
        )
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=150)


def _panel(
    axes: Any,  # noqa: ANN401 - matplotlib's own type
    rows: Sequence[Row],
    names: Iterable[str],
    x: str,
    *,
    whole: Row | None = None,
) -> None:
    """Draw a line for each source; `whole` is where the lines of mixtures end."""
    axes.set_xscale("log", base=2)
    for place, name in enumerate(names):
        own = [row for row in rows if row["judge"] == name]
        if not own:
            continue
        if whole is not None and name != PEOPLE:
            own = [*own, whole]
        _line(axes, own, name, [sum(row[key] for key in x.split(" + ")) * 1.012**place for row in own])
    ticks = sorted({row["people"] for row in rows if not row["judged"]})
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.minorticks_off()
    axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))


def _line(axes: Any, rows: Sequence[Row], name: str, xs: Sequence[float]) -> None:  # noqa: ANN401 - see above
    shown = (*judges.TITLES,)
    style: Any = {"color": INK, "marker": "o", "label": "people only"}
    if name == judges.RANDOM:
        style = {"color": MUTED, "marker": "x", "label": judges.title(name)}
    elif name != PEOPLE:
        place = shown.index(name)
        dashes = "-" if name in judges.KNOWN else "--"
        marker, color = _MARKERS[place % len(_MARKERS)], COLORS[place % len(COLORS)]
        style = {"color": color, "marker": marker, "linestyle": dashes, "label": judges.title(name)}
    values = [row["value"] for row in rows]
    ends = [
        [value - row["interval"][0] for value, row in zip(values, rows, strict=True)],
        [row["interval"][1] - value for value, row in zip(values, rows, strict=True)],
    ]
    axes.errorbar(xs, values, yerr=ends, markersize=4, capsize=0, elinewidth=0.7, linewidth=1.3, **style)
