"""The table, the picture and the results of finished runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.labels import Labelled, label
from benchmarks.methods.outcome import Outcome, Seeds
from benchmarks.result import Result
from trainer import charts
from trainer.charts import COLORS, INK, MUTED

SFT = "SFT"
_BASELINE = "ppo"
_HEADER = (
    "method",
    "seeds",
    "gold",
    "win rate",
    "KL, nats",
    "score",
    "words",
    "answers generated",
    "CPU-s, whole run",
    "CPU-s, training",
)


def table(found: Sequence[Seeds], start: Outcome) -> str:
    """Return a table in Markdown, the highest gold first: means over seeds ± standard deviations."""
    lines = [f"| {' | '.join(_HEADER)} |", f"|---|{'--:|' * (len(_HEADER) - 1)}"]
    ordered = sorted(found, key=lambda one: -one.mean("gold"))
    lines += [_row(one) for one in (*ordered, Seeds("sft", SFT, [start]))]
    return "\n".join(lines)


def _row(one: Seeds) -> str:
    cells = [one.title, str(len(one.outcomes)) if one.title != SFT else ""]
    cells += [
        _figure(one, figure, digits)
        for figure, digits in (("gold", 2), ("win_rate", 2), ("kl", 2), ("score", 2))
    ]
    cells += [f"{one.mean('words'):.1f}", f"{one.mean('episodes'):,.0f}"]
    cells += [f"{one.mean(figure):.0f}" for figure in ("whole_cpu_seconds", "training_cpu_seconds")]
    return f"| {' | '.join(cells)} |"


def _figure(one: Seeds, figure: str, digits: int) -> str:
    deviation = one.deviation(figure)
    mean = f"{one.mean(figure):.{digits}f}"
    return mean if deviation is None else f"{mean} ± {deviation:.{digits}f}"


def results(found: Sequence[Seeds], start: Outcome) -> dict[str, Result]:
    """Return gold against that of SFT, and KL and CPU time against those of PPO, as means over seeds."""
    by_name: Mapping[str, Seeds] = {one.name: one for one in found}
    ppo = by_name.get(_BASELINE)
    entries: dict[str, Result] = {}
    for one in found:
        name = f"methods_{one.name}"
        for figure, unit in (("gold", "gold"), ("score", "score")):
            entries[f"{name}_{figure}"] = Result(one.mean(figure), unit, getattr(start, figure), SFT)
        entries[f"{name}_win_rate"] = Result(one.mean("win_rate"), "win rate", 0.5, SFT)
        for figure, unit in (
            ("kl", "nats/answer"),
            ("whole_cpu_seconds", "CPU-s"),
            ("training_cpu_seconds", "CPU-s"),
        ):
            baseline = math.nan if ppo is None else ppo.mean(figure)
            entries[f"{name}_{figure}"] = Result(one.mean(figure), unit, baseline, "PPO")
    return entries


def draw(found: Sequence[Seeds], start: Outcome, out: Path) -> None:
    """Draw gold against √KL: a dot for each seed, a ring at the mean of each method."""
    with mpl.rc_context({**charts.STYLE, "savefig.facecolor": "white"}):
        figure = Figure(figsize=(8.6, 5.4), layout="constrained")
        axes = figure.subplots()
        axes.scatter([_root(start)], [start.gold], color=INK, s=36, marker="s")
        means = [Labelled(SFT, _root(start), start.gold, INK)]
        for number, one in enumerate(found):
            color = COLORS[number % len(COLORS)]
            roots = [_root(outcome) for outcome in one.outcomes]
            golds = [outcome.gold for outcome in one.outcomes]
            axes.scatter(roots, golds, color=color, s=14, alpha=0.7, linewidths=0)
            x, y = sum(roots) / len(roots), one.mean("gold")
            axes.scatter([x], [y], s=70, facecolors="white", edgecolors=color, linewidths=1.8, zorder=3)
            means.append(Labelled(one.title, x, y, color))
        axes.set_xlabel("√KL to SFT, √nats per answer")
        axes.set_ylabel("gold, held-out prompts")
        label(axes, means, line=MUTED)
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=150)


def _root(outcome: Outcome) -> float:
    return math.sqrt(max(0.0, outcome.kl))
