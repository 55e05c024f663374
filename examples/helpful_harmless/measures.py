"""What is measured of the policy before and after: what each figure means, and the table of all.

A measure is a number for each text, before and after, of the same prompts in the same order. Does not know
how the numbers are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fairlead.judgments.resampling import Interval, mean_interval
from fairlead.judgments.shares import paired_interval


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of the table."""

    title: str
    """What is measured."""
    form: str
    """Format of a value."""
    group: str
    """Heading of the rows that it belongs to."""


HARM = "Harm, on held-out prompts of hh_rlhf"
HELP = "Help, on harmless prompts"
KEPT = "Capability"
SHAPE = "Form of the answers to held-out prompts"

MEASURES: Mapping[str, Measure] = {
    "judge": Measure("judge's score", "{:.2f}", HARM),
    "reward": Measure("reward model's score, which RLOO raises", "{:.2f}", HARM),
    "log_odds": Measure("log-odds of people's choice, nats per pair", "{:.2f}", HARM),
    "log_odds_right": Measure("pairs in which the better answer is more probable", "{:.1%}", HARM),
    "refuses": Measure("answers that refuse", "{:.1%}", HARM),
    "toxic_words": Measure("answers with a word of the harm list", "{:.1%}", HARM),
    "toxic_probability": Measure("toxicity by the classifier of words", "{:.3f}", HARM),
    "refuses_harmful": Measure("harmful prompts of the safety suite refused", "{:.1%}", HARM),
    "refuses_harmless": Measure("harmless prompts of the safety suite refused", "{:.1%}", HELP),
    "refuses_instruction": Measure("instructions of alpaca_eval refused", "{:.1%}", HELP),
    "shared_words": Measure("words shared with the best answer to an instruction, F1", "{:.3f}", HELP),
    "best_answer": Measure("log-likelihood of that answer, nats per token", "{:.3f}", HELP),
    "questions": Measure("checkable questions answered right", "{:.1%}", KEPT),
    "chosen": Measure("log-likelihood of people's choice, nats per token", "{:.3f}", KEPT),
    "sentences": Measure("log-likelihood of film reviews, nats per token", "{:.3f}", KEPT),
    "words": Measure("words", "{:.1f}", SHAPE),
    "ended": Measure("answers that ended within the limit of tokens", "{:.1%}", SHAPE),
}
"""Rows by name, in the order of the table."""


def changes(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], *, seed: int
) -> dict[str, dict[str, Any]]:
    """Return for each measure both means, and the mean change with its 95% interval.

    The interval is by resampling texts; of two shares it is Newcombe's for pairs, which has a width even if
    no text changed.
    """
    found = {}
    for name, early in before.items():
        gains = [late - value for value, late in zip(early, after[name], strict=True)]
        if gains:
            found[name] = {
                "n": len(gains),
                "before": fmean(early),
                "after": fmean(after[name]),
                "change": fmean(gains),
                "interval": _interval(early, after[name], seed=seed),
            }
    return found


def _interval(before: Sequence[float], after: Sequence[float], *, seed: int) -> Interval:
    if {*before, *after} <= {0.0, 1.0}:
        return paired_interval([value == 1.0 for value in after], [value == 1.0 for value in before])
    return mean_interval([late - early for early, late in zip(before, after, strict=True)], seed=seed)


def win_rate(before: Sequence[float], after: Sequence[float], *, seed: int) -> dict[str, Any]:
    """Return how often the later score is higher, ties counted half, with its 95% interval."""
    wins = [
        1.0 if late > early else 0.5 if late == early else 0.0
        for early, late in zip(before, after, strict=True)
    ]
    return {"share": fmean(wins), "interval": mean_interval(wins, seed=seed), "n": len(wins)}


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the result of `changes` as Markdown."""
    lines = ["| | n | before | after | change | 95% interval |", "|---|---:|---:|---:|---:|---:|"]
    group = ""
    for name, measure in MEASURES.items():
        if name not in figures:
            continue
        if measure.group != group:
            group = measure.group
            lines.append(f"| **{group}** | | | | | |")
        row = figures[name]
        signed = measure.form.replace("{:", "{:+")
        low, high = (signed.format(end) for end in row["interval"])
        cells = (measure.form.format(row["before"]), measure.form.format(row["after"]))
        change = signed.format(row["change"])
        lines.append(f"| {measure.title} | {row['n']} | {' | '.join(cells)} | {change} | {low} to {high} |")
    return "\n".join(lines)
