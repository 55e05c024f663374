"""The table, the picture and the results of finished runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import seed_points
from benchmarks.methods.outcome import Outcome, Seeds
from benchmarks.result import Result
from benchmarks.seed_points import Series

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
    """Return a table in Markdown, the highest gold first: means ± standard deviations, medians of costs."""
    lines = [f"| {' | '.join(_HEADER)} |", f"|---|{'--:|' * (len(_HEADER) - 1)}"]
    ordered = sorted(found, key=lambda one: -one.mean("gold"))
    lines += [_row(one) for one in (*ordered, Seeds("sft", SFT, [start]))]
    return "\n".join(lines)


def _row(one: Seeds) -> str:
    cells = [one.title, str(len(one.outcomes)) if one.title != SFT else ""]
    cells += [one.shown(figure, 2) for figure in ("gold", "win_rate", "kl", "score")]
    cells += [f"{one.mean('words'):.1f}", f"{one.mean('episodes'):,.0f}"]
    cells += [f"{one.median(figure):.0f}" for figure in ("whole_cpu_seconds", "training_cpu_seconds")]
    return f"| {' | '.join(cells)} |"


def results(found: Sequence[Seeds], start: Outcome) -> dict[str, Result]:
    """Return gold against that of SFT, and KL and CPU time (medians) against those of PPO."""
    by_name: Mapping[str, Seeds] = {one.name: one for one in found}
    ppo = by_name.get(_BASELINE)
    entries: dict[str, Result] = {}
    for one in found:
        name = f"methods_{one.name}"
        for figure, unit in (("gold", "gold"), ("score", "score")):
            entries[f"{name}_{figure}"] = Result(one.mean(figure), unit, getattr(start, figure), SFT)
        entries[f"{name}_win_rate"] = Result(one.mean("win_rate"), "win rate", 0.5, SFT)
        kl = math.nan if ppo is None else ppo.mean("kl")
        entries[f"{name}_kl"] = Result(one.mean("kl"), "nats/answer", kl, "PPO")
        for figure in ("whole_cpu_seconds", "training_cpu_seconds"):
            cost = math.nan if ppo is None else ppo.median(figure)
            entries[f"{name}_{figure}"] = Result(one.median(figure), "CPU-s", cost, "PPO")
    return entries


def draw(found: Sequence[Seeds], start: Outcome, out: Path) -> None:
    """Draw gold against √KL."""
    seed_points.draw(
        [Series(one.title, [_point(outcome) for outcome in one.outcomes]) for one in found],
        Series(SFT, [_point(start)]),
        out,
        x_label="√KL to SFT, √nats per answer",
        y_label="gold, held-out prompts",
    )


def _point(outcome: Outcome) -> tuple[float, float]:
    return math.sqrt(max(0.0, outcome.kl)), outcome.gold
