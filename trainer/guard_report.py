"""The section of a report about signals of reward hacking: each with its limits, its course, when it fired.

Reads a run's record; knows nothing of how a signal is measured.
"""

from __future__ import annotations

from fairlead.config.training import GuardSection
from trainer.page import PageSection, Table
from trainer.run_record import RunRecord

MEANINGS = {
    "length_ratio": "length of answers ÷ that of the first update",
    "repetition": "repeated 3-grams, less three times those of the first update",
    "eos_ratio": "share of answers that end ÷ that of the first update",
    "kl": "KL to the reference, nats per answer, k1",
    "kl_k3": "KL to the reference, nats per answer, k3",
    "entropy_ratio": "entropy ÷ that of the first update",
    "distinct_ratio": "different answers ÷ those of the first update",
    "overconfidence": "fresh labels that the reward model claims to foresee, less those it does",
    "score_length": "rank correlation of score and length",
    "scores_outside": "scores beyond those that the reward model learned from",
}
"""By signal, in the order of the table."""


def guards(record: RunRecord) -> list[PageSection]:
    """What every signal did; empty for a run that was not watched."""
    rows = [row for signal in MEANINGS if (row := _row(record, signal)) is not None]
    if not rows:
        return []
    alerts = record.ppo.get("guards", ())
    stops = [alert for alert in alerts if alert["level"] == "stop"]
    told = "No signal crossed a stop limit."
    if stops:
        first = min(stops, key=lambda alert: float(alert["update"]))
        told = (
            f"The first stop limit was crossed at update {first['update']}: {first['signal']} at "
            f"{first['value']:.3g}, with a limit of {first['threshold']:g}."
        )
    if "stopped_by_guard" in record.ppo:
        told += f" {record.ppo['stopped_by_guard']}."
    text = (
        f"{told} The signals are measured on the answers of every update. Those with a stop limit were never "
        "crossed by healthy runs; variety falls in healthy runs too, so it can only warn. None but "
        "overconfidence sees mild over-optimisation; it needs labels of people on the policy's own answers."
    )
    table = Table(columns=("signal", "first", "last", "range", "limit", "fired"), rows=tuple(rows))
    return [PageSection(title="Watching for reward hacking", text=text, tables=(table,))]


def _row(record: RunRecord, signal: str) -> tuple[str, ...] | None:
    """What a signal did, and when it first crossed which limit; None if it was not measured."""
    _, course = record.curve(f"guard_{signal}")
    if not course:
        return None
    fired: dict[str, int] = {}
    for alert in record.ppo.get("guards", ()):
        if alert["signal"] == signal:
            fired.setdefault(alert["level"], alert["update"])
    return (
        MEANINGS[signal],
        f"{course[0]:.2f}",
        f"{course[-1]:.2f}",
        f"{min(course):.2f} to {max(course):.2f}",
        _limits(record, signal),
        ", ".join(f"{level} at {update}" for level, update in fired.items()) or "no",
    )


def _limits(record: RunRecord, signal: str) -> str:
    """Every limit in words: `stop < 0.7, > 1.5`."""
    found = []
    settings = GuardSection.model_validate(dict(record.guard)).model_dump()
    for level in ("warn", "stop"):
        sides = [
            f"{sign} {limit:g}"
            for side, sign in (("below", "<"), ("above", ">"))
            if (limit := settings.get(f"{signal}_{level}_{side}")) is not None
        ]
        if sides:
            found.append(f"{level} {', '.join(sides)}")
    return "; ".join(found) or "none"
