"""Draw preference by size, tuned and not: figure 1 of the InstructGPT paper at this scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from examples import plots
from examples.headline.answers import PERFECT, STAGES
from examples.plots import COLORS, INK, MUTED

_SIZE_INCHES = (10.0, 3.8)
_STYLES: Mapping[str, tuple[str, str, str]] = {
    "tuned": (COLORS[1], "D", "tuned: SFT → reward model → PPO"),
    "fine-tuned": (COLORS[0], "o", "fine-tuned only (SFT)"),
    "prompted": (COLORS[2], "^", "pretrained, prompted with two examples"),
    "pretrained": (COLORS[3], "s", "pretrained only"),
}
"""Color, marker and label of each stage; markers differ too, for those who see no colors."""


def draw(figures: Mapping[str, Any], out: Path) -> None:
    """Draw the picture in the format of the suffix of `out`; an SVG says in words what it shows.

    Args:
        figures: the content of headline.json.
        out: the file to write.
    """
    judges: Sequence[str] = figures["judges"]
    parameters = {row["size"]: row["parameters"] for row in figures["means"]["models"] if "parameters" in row}
    # To the right of the largest.
    parameters[PERFECT] = 10 * max(parameters.values())
    with mpl.rc_context({**plots.STYLE, "savefig.facecolor": "white"}):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        panels = figure.subplots(1, len(judges), squeeze=False, sharey=True)[0]
        for axes, judge in zip(panels, judges, strict=True):
            for stage in reversed(STAGES):
                _curve(axes, figures, judge, stage, parameters)
            axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            axes.set_xscale("log")
            axes.set_xticks(list(parameters.values()), labels=[*figures["sizes"], "perfect\nimitation"])
            axes.minorticks_off()
            axes.set_ylim(0, 1)
            axes.set_xlabel("parameters")
            axes.set_title(f"Judged by {judge}", fontsize=10)
        panels[0].set_ylabel(f"win rate against\n{figures['sizes'][-1]} fine-tuned")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5)
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=150)
    if out.suffix == ".svg":
        _describe(out, description(figures))


def description(figures: Mapping[str, Any]) -> str:
    """Return in words what the picture shows."""
    rows = figures["means"]["against_largest_fine_tuned"]
    judge = figures["judges"][0]
    rates = "; ".join(
        f"{row['size']} {row['stage']} {row['win_rate']:.2f}" for row in rows if row["judge"] == judge
    )
    return (
        f"Win rate against {figures['sizes'][-1]} fine-tuned by number of parameters, a panel for each "
        f"judge. Means over seeds by {judge}: {rates}."
    )


def _curve(
    axes: Any,  # noqa: ANN401 - matplotlib's own type
    figures: Mapping[str, Any],
    judge: str,
    stage: str,
    parameters: Mapping[str, float],
) -> None:
    rows = [
        row
        for row in figures["means"]["against_largest_fine_tuned"]
        if row["judge"] == judge and row["stage"] == stage
    ]
    if stage == "fine-tuned":
        # The model of the comparison itself.
        rows.append({"size": figures["sizes"][-1], "win_rate": 0.5, "by_seed": [0.5]})
    color, marker, label = _STYLES[stage]
    style: dict[str, Any] = {"color": color, "marker": marker, "linewidth": 1.6, "capsize": 3}
    style |= {"markersize": 8, "markeredgecolor": INK} if stage == "tuned" else {"markersize": 6}
    for perfect in (False, True):
        own = [row for row in rows if (row["size"] == PERFECT) is perfect]
        rates = [row["win_rate"] for row in own]
        below = [row["win_rate"] - min(row["by_seed"]) for row in own]
        above = [max(row["by_seed"]) - row["win_rate"] for row in own]
        if perfect:
            style |= {"markerfacecolor": "white"}
        x = [parameters[row["size"]] for row in own]
        axes.errorbar(x, rates, yerr=[below, above], label=None if perfect else label, **style)


def _describe(path: Path, text: str) -> None:
    """Give an SVG a title and a description for screen readers."""
    svg = path.read_text(encoding="utf-8")
    start = svg.index(">", svg.index("<svg")) + 1
    head = svg[:start].replace("<svg", '<svg role="img" aria-labelledby="headline-title headline-text"', 1)
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    named = (
        '\n <title id="headline-title">Preference by model size, tuned and not</title>'
        f'\n <desc id="headline-text">{escaped}</desc>'
    )
    path.write_text(head + named + svg[start:], encoding="utf-8")
