"""An entry of the table of statistics: title, unit, meaning, what a healthy run shows, and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PPO = ("ppo",)
OF_PAIRS = ("ppo", "preference")
OF_DATA = ("sft", "reward_model", "preference")


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic, or a family of them."""

    name: str
    """Its key; `<…>` at its end is any text, as in `term_<name>`."""
    title: str
    """A heading, without the unit: `Reward`."""
    unit: str
    """Unit of the value as a reader writes it: `nats per answer`, `seconds`, `share`; empty for a plain
    number."""
    meaning: str
    """One sentence or two: what is measured."""
    good: str = ""
    """What a healthy run shows, and what a deviation means."""
    signal: str = ""
    """The signal of the guard that judges it; its limits are `guard.<signal>_warn_above` and so on."""
    minimum: float | None = None
    """Smallest possible value, at which the axis of a chart begins; None if there is none."""
    stages: Sequence[str] = PPO
    """The stages that have it."""

    @property
    def prefix(self) -> str:
        """The fixed part of the name of a family; empty if this is a single statistic."""
        return self.name.partition("<")[0] if "<" in self.name else ""
