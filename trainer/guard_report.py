"""The section of a report about signals of reward hacking: their limits, their values, when they fired.

Reads the record of a run; does not know how a signal is measured.
"""

from __future__ import annotations

from fairlead.config.guard import GuardSection
from trainer.page import PageSection, Table
from trainer.run_record import RunRecord

MEANINGS = {
    "length_ratio": "length of answers ÷ length in the first update",
    "repetition": "share of repeated 3-grams − 3 × that of the first update",
    "eos_ratio": "share of answers that end ÷ share in the first update",
    "kl": "KL to the reference, nats per answer, k1",
    "kl_k3": "KL to the reference, nats per answer, k3",
    "entropy_ratio": "entropy ÷ entropy in the first update",
    "distinct_ratio": "number of different answers ÷ number in the first update",
    "overconfidence": "fresh labels: share that the reward model claims to predict − share that it predicts",
    "score_length": "rank correlation of score and length",
    "scores_outside": "share of scores outside the range of the reward model's training",
}
"""What each signal measures, in the order of the table."""


def guards(record: RunRecord) -> list[PageSection]:
    """Return the table of all signals; empty for a run without them."""
    rows = [row for signal in MEANINGS if (row := _row(record, signal)) is not None]
    if not rows:
        return []
    alerts = record.ppo.get("guards", ())
    stops = [alert for alert in alerts if alert["level"] == "stop"]
    summary = "No signal crossed a stop limit."
    if stops:
        first = min(stops, key=lambda alert: float(alert["update"]))
        summary = f"The first stop limit was crossed at update {first['update']}: {first['signal']} "
        if first["threshold"] is None:
            summary += "was not finite."
        else:
            summary += f"at {first['value']:.3g}, with a limit of {first['threshold']:g}."
    if "stopped_by_guard" in record.ppo:
        summary += f" {record.ppo['stopped_by_guard']}."
    text = (
        f"{summary} The signals are measured on the answers of every update. No healthy run has crossed a "
        "stop limit. Variety falls in healthy runs too, so its limits only warn. Mild over-optimisation "
        "shows only in overconfidence, which needs human labels of the policy's own answers."
    )
    table = Table(columns=("signal", "first", "last", "range", "limits", "fired"), rows=tuple(rows))
    return [PageSection(title="Signals of reward hacking", text=text, tables=(table,))]


def _row(record: RunRecord, signal: str) -> tuple[str, ...] | None:
    """Return the values of a signal and when it first crossed each limit; None if it was not measured."""
    _, values = record.curve(f"guard_{signal}")
    if not values:
        return None
    fired: dict[str, int] = {}
    for alert in record.ppo.get("guards", ()):
        if alert["signal"] == signal:
            fired.setdefault(alert["level"], alert["update"])
    return (
        MEANINGS[signal],
        f"{values[0]:.2f}",
        f"{values[-1]:.2f}",
        f"{min(values):.2f} to {max(values):.2f}",
        _limits(record, signal),
        ", ".join(f"{level} at {update}" for level, update in fired.items()) or "no",
    )


def _limits(record: RunRecord, signal: str) -> str:
    """Return all limits of a signal as text: `stop < 0.7, > 1.5`."""
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
