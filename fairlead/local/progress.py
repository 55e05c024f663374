"""Reads `progress.json`, which the running stage replaces as it goes.

Knows its fields, not who writes or shows them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Progress:
    """What a stage does now."""

    stage: str
    """sft, reward_model, ppo or evaluation."""
    phase: str
    """One of `fairlead.metrics.PHASES`."""
    step: int
    """Steps or updates done."""
    total: int
    """Of how many."""
    figures: dict[str, float] = field(default_factory=dict)
    """Figures of the last step, by name."""
    since: float = 0.0
    """Unix time in seconds at which the phase began."""
    waiting_for: str | None = None
    """What it waits for, if it does."""
    eta_seconds: float | None = None
    """Time left, if known."""


def read(path: Path) -> Progress | None:
    """The progress as last written; None if there is none."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        return Progress(
            stage=str(entry["stage"]),
            phase=str(entry["phase"]),
            step=int(entry["step"]),
            total=int(entry["total"]),
            figures={str(name): float(value) for name, value in (entry.get("figures") or {}).items()},
            since=float(entry.get("since") or 0.0),
            waiting_for=entry.get("waiting_for"),
            eta_seconds=entry.get("eta_seconds"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
