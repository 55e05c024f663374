"""Win rate of one policy against another, with ties and an interval by resampling prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fairlead.judgments import resampling
from fairlead.judgments.shares import wilson_interval

RESAMPLES = 2_000
"""Bootstrap samples of an interval."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often A wins against B."""

    rate: float
    """Mean over prompts of the mean verdict of their comparisons; a win is 1, a tie 0.5, a loss 0."""
    interval: tuple[float, float]
    """95% interval of the rate: by resampling prompts; where all of them have the same rate, which leaves
    nothing to resample, Wilson's of as many trials, the widest for any verdicts with that mean."""
    wins: int
    """Comparisons that A wins."""
    ties: int
    """Comparisons without a winner."""
    losses: int
    """Comparisons that B wins."""
    prompts: int
    """Number of prompts."""

    def as_json(self) -> dict[str, object]:
        """Return the fields for a report."""
        return {
            "win_rate": self.rate,
            "interval": list(self.interval),
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "prompts": self.prompts,
        }


def win_rate(verdicts: Sequence[Sequence[float]], *, seed: int) -> WinRate:
    """Return the win rate over prompts.

    Args:
        verdicts: of each prompt those of its comparisons, from 0 (B wins) to 1 (A wins); at least one each.
        seed: of the bootstrap.
    """
    means = [float(np.mean(own)) for own in verdicts]
    rate = float(np.mean(means))
    varies = len(set(means)) > 1
    flat = [value for own in verdicts for value in own]
    return WinRate(
        rate=rate,
        interval=mean_interval(means, seed=seed) if varies else wilson_interval(rate, len(means)),
        wins=sum(value > 0.5 for value in flat),
        ties=sum(value == 0.5 for value in flat),
        losses=sum(value < 0.5 for value in flat),
        prompts=len(verdicts),
    )


def by_group(
    verdicts: Sequence[Sequence[float]], groups: Sequence[str], *, seed: int
) -> Mapping[str, WinRate]:
    """Return the win rate of the prompts of each group, by name."""
    return {
        group: win_rate([own for own, name in zip(verdicts, groups, strict=True) if name == group], seed=seed)
        for group in sorted(set(groups))
    }


def mean_interval(values: Sequence[float], *, seed: int) -> tuple[float, float]:
    """Return the 95% interval of the mean of values by prompt, by resampling prompts (Efron 1979)."""
    return resampling.mean_interval(values, seed=seed, resamples=RESAMPLES)
