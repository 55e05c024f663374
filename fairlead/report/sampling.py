"""The page of `fairlead best-of-n` or `compare`: a chart of its figures, as report.html."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairlead.config.saving import replace_text
from fairlead.report import charts
from fairlead.report.page import Headline, Page, PageSection, Picture, render


def best_of_n(figures: Mapping[str, Any]) -> Page:
    """Return the page of best-of-n: the score of the reward and of gold over the distance from the policy."""
    rows = figures["best_of_n"]
    x = [row["kl_bound"] for row in rows]
    names = {"score": "reward", "gold": "gold"}
    curves = {name: (x, [row[key] for row in rows]) for key, name in names.items() if key in rows[0]}
    picture = Picture(
        title="Score of the best of n",
        chart=charts.lines(curves, x_label="log n − (n−1)/n, nats"),
        caption="Where gold falls while the reward rises, more answers exploit errors of the reward.",
        wide=True,
    )
    last = rows[-1]
    headlines = [
        Headline(f"{last['score']:+.2f}", f"reward of the best of {last['n']}", "Mean over prompts.")
    ]
    if "gold" in last:
        headlines.append(Headline(f"{last['gold']:+.2f}", "its gold score", "Mean over prompts."))
    lead = f"{figures['prompts']} prompts with {figures['n']} answers each."
    return Page("Best of n", lead, tuple(headlines), (PageSection("Growth with n", "", (picture,)),))


def compare(figures: Mapping[str, Any]) -> Page:
    """Return the page of a comparison: the win rate by group."""
    groups = {"all": figures["win_rate"]} | {
        name: row["win_rate"] for name, row in figures.get("groups", {}).items()
    }
    picture = Picture(
        title="Win rate of A",
        chart=charts.bars(groups, x_label="share of comparisons, ties half", limit=1.0, mark=0.5, wide=True),
        caption=f"A: {figures['a']}. B: {figures['b']}. Judge: {figures['judge']}.",
        wide=True,
    )
    low, high = figures["interval"]
    meaning = f"95% interval {low:.1%} to {high:.1%}, by resampling {figures['prompts']} prompts."
    headline = Headline(f"{figures['win_rate']:.1%}", "win rate of A", meaning)
    counts = f"{figures['wins']} wins, {figures['ties']} ties, {figures['losses']} losses."
    return Page("Comparison of two policies", counts, (headline,), (PageSection("Win rate", "", (picture,)),))


def write(folder: Path, figures: Mapping[str, Any]) -> None:
    """Write report.html of the figures of `best-of-n` or `compare`."""
    page = best_of_n(figures) if "best_of_n" in figures else compare(figures)
    replace_text(folder / "report.html", render(page))
