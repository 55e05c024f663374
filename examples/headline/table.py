"""The figures of the headline as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from examples.headline.answers import PERFECT, Stage
from examples.headline.judging import GOLD, LABELERS, OTHER
from examples.headline.results import order, rows_of

TITLES: Mapping[str, str] = {
    "pretrained": "only pretrained",
    "prompted": "only pretrained, prompted with two answered questions",
    "fine-tuned": "fine-tuned (SFT)",
    "tuned": "tuned (SFT → reward model → PPO)",
}
"""What was done to a model, by stage."""
_LIMITS: Mapping[str, str] = {
    "pretrained": "a perfect imitator of the pages",
    "fine-tuned": "a perfect imitator of the demonstrations",
}
"""What a model of any size at most becomes by a stage."""


def markdown(figures: Mapping[str, Any]) -> str:
    """Return all tables.

    Args:
        figures: the content of headline.json.
    """
    smallest, largest = figures["sizes"][0], figures["sizes"][-1]
    parts = [f"# The headline: {smallest} tuned against {largest}\n", summary(figures)]
    opponents: tuple[tuple[Stage, str], ...] = (
        ("pretrained", largest),
        ("prompted", largest),
        ("fine-tuned", largest),
        ("pretrained", PERFECT),
        ("fine-tuned", PERFECT),
    )
    for stage, size in opponents:
        parts.append(f"\n## {smallest} tuned against {_named(stage, size)}\n\n{_wins(figures, stage, size)}")
    parts += [f"\n## Models\n\n{_models(figures)}", f"\n{_time(figures)}"]
    return "\n".join(parts)


def summary(figures: Mapping[str, Any]) -> str:
    """Return the headline as a sentence or two."""
    smallest, largest = figures["sizes"][0], figures["sizes"][-1]
    parts = []
    for judge in figures["judges"]:
        rows = _rows(figures, "pretrained", largest, judge)
        holds = sum(row["interval"][0] > 0.5 for row in rows)
        low, high = min(row["win_rate"] for row in rows), max(row["win_rate"] for row in rows)
        parts.append(f"by {judge} in {low:.1%} to {high:.1%} ({holds} of {len(rows)} intervals above 50%)")
    return (
        f"Answers of {smallest}, tuned, are preferred to those of {largest}, only pretrained: "
        f"{'; '.join(parts)}.\n"
    )


def _named(stage: str, size: str) -> str:
    return _LIMITS[stage] if size == PERFECT else f"{size} {TITLES[stage]}"


def _rows(figures: Mapping[str, Any], stage: Stage, size: str, judge: str) -> list[dict[str, Any]]:
    return [
        row
        for one in figures["seeds"]
        for row in rows_of(one, "tuned_against", stage=stage, size=size, judge=judge)
    ]


def _wins(figures: Mapping[str, Any], stage: Stage, size: str) -> str:
    judges = [judge for judge in (GOLD, LABELERS, OTHER) if judge in figures["judges"]]
    lines = [f"| seed | {' | '.join(f'by {judge}' for judge in judges)} |", f"|---|{'---|' * len(judges)}"]
    by_judge = {judge: _rows(figures, stage, size, judge) for judge in judges}
    for place, one in enumerate(figures["seeds"]):
        cells = [_win(by_judge[judge][place]) for judge in judges]
        lines.append(f"| {one['seed']} | {' | '.join(cells)} |")
    means = [sum(row["win_rate"] for row in by_judge[judge]) / len(by_judge[judge]) for judge in judges]
    lines.append(f"| mean | {' | '.join(f'**{mean:.3f}**' for mean in means)} |")
    return "\n".join(lines)


def _win(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    tied = row["ties"] / (row["wins"] + row["ties"] + row["losses"])
    return f"{row['win_rate']:.3f} ({low:.3f} to {high:.3f}), ties {tied:.0%}"


def _models(figures: Mapping[str, Any]) -> str:
    columns = (
        "model",
        "parameters",
        "held-out loss",
        "gold",
        "right remedy",
        "rude",
        "other text",
        "words",
        "ended",
        f"preferred to {figures['sizes'][-1]} fine-tuned, by gold",
    )
    lines = [f"| {' | '.join(columns)} |", "|---|" + "--:|" * (len(columns) - 1)]
    means = figures["means"]
    for row in order(means["models"], figures["sizes"]):
        key = "against_largest_fine_tuned"
        against = rows_of(means, key, stage=row["stage"], size=row["size"], judge=GOLD)
        loss = row.get("heldout_loss")
        cells = (
            _named(row["stage"], row["size"]),
            f"{row['parameters']:,.0f}" if "parameters" in row else "",
            "" if loss is None else f"{loss:.3f}",
            f"{row['gold']:.2f}",
            *(f"{row[name]:.0%}" for name in ("right_remedy", "rude", "other_text")),
            f"{row['words']:.1f}",
            f"{row['ended']:.0%}",
            f"{against[0]['win_rate']:.3f}" if against else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _time(figures: Mapping[str, Any]) -> str:
    seconds = sum(sum(one["seconds"].values()) for one in figures["seeds"])
    cpu = sum(sum(one["cpu_seconds"].values()) for one in figures["seeds"])
    return (
        f"The steps of {len(figures['seeds'])} seeds took {seconds / 60:.1f} minutes in all, less by the "
        f"clock where seeds ran side by side, and {cpu / 60:.1f} minutes of CPU time on {figures['cores']} "
        "cores.\n"
    )
