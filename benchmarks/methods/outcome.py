"""What a method gave with one seed, and the mean over seeds. Numbers only; nothing runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run of a method, or the policy that all start from, which cost nothing."""

    gold: float
    """Mean gold reward on held-out prompts."""
    kl: float
    """KL to the SFT policy, nats per answer."""
    win_rate: float
    """Probability that an answer has a higher gold reward than one of the SFT policy; ties count half."""
    score: float
    """Mean score of the reward model."""
    words: float
    """Mean length of an answer."""
    episodes: int = 0
    """Answers that were generated."""
    whole_cpu_seconds: float = 0.0
    """CPU time of all processes of all commands, start-up included."""
    training_cpu_seconds: float = 0.0
    """CPU time of the process that computes gradients, without start-up."""
    seconds: float = 0.0
    """Wall-clock time."""

    def __str__(self) -> str:
        return (
            f"gold {self.gold:.2f} at KL {self.kl:.2f}, score {self.score:.2f}, {self.episodes:,} answers, "
            f"{self.whole_cpu_seconds:.1f} CPU-s, {self.training_cpu_seconds:.1f} of them training"
        )

    @staticmethod
    def of(kept: Mapping[str, object]) -> Outcome:
        """Return the outcome of a file."""
        return Outcome(**kept)  # type: ignore[arg-type]  # as `asdict` wrote it


@dataclass(frozen=True, slots=True)
class Seeds:
    """The finished seeds of a method."""

    name: str
    """In the names of results and files."""
    title: str
    """For people."""
    outcomes: Sequence[Outcome]
    """At least one."""

    def mean(self, figure: str) -> float:
        """Return the mean of a figure over seeds."""
        return statistics.fmean(getattr(outcome, figure) for outcome in self.outcomes)

    def median(self, figure: str) -> float:
        """Return the median of a figure over seeds; for costs, which other work on the machine raises."""
        values: list[float] = [getattr(outcome, figure) for outcome in self.outcomes]
        return statistics.median(values)

    def deviation(self, figure: str) -> float | None:
        """Return the standard deviation of a figure over seeds; None for a single one."""
        values = [getattr(outcome, figure) for outcome in self.outcomes]
        return statistics.stdev(values) if len(values) > 1 else None

    def shown(self, figure: str, digits: int) -> str:
        """Return mean ± standard deviation of a figure, as text."""
        # Without the sign of a rounded −0.
        mean, deviation = f"{round(self.mean(figure), digits) + 0.0:.{digits}f}", self.deviation(figure)
        return mean if deviation is None else f"{mean} ± {deviation:.{digits}f}"
