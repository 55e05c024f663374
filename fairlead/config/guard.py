"""The section of the guard against reward hacking: a limit for each signal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from fairlead.config.base import Section

Level = Literal["quiet", "warn", "stop"]
"""How bad the value of a signal is."""


@dataclass(frozen=True, slots=True)
class GuardLimit:
    """A limit of a signal."""

    level: Literal["warn", "stop"]
    """What happens to a value beyond it."""
    side: Literal["above", "below"]
    """The side on which values are beyond it."""
    value: float
    """The limit itself, which is not beyond it."""

    def is_crossed(self, value: float) -> bool:
        """Return whether a value is beyond the limit."""
        return value > self.value if self.side == "above" else value < self.value


class GuardSection(Section):
    """Limits for signals of reward hacking, checked at every update of PPO. Crossing a `warn` limit is logged
    as a warning, crossing a `stop` limit as an error; with `action = "stop"` it also ends the run at its last
    good checkpoint.

    The default stop limits were crossed by runs that went wrong and by no healthy run. Entropy and variety
    halve in healthy runs too, so they only warn. A limit that is not set is not checked.

    With `ppo.max_staleness` above 0, "the first update" is the mean of the first max_staleness + 1 updates.
    """

    action: Literal["off", "warn", "stop"] = "warn"
    """`warn` logs crossed limits and continues; `stop` ends the run when a stop limit is crossed; `off` only
    records the signals."""

    length_ratio_warn_below: float | None = Field(default=None, ge=0)
    """Warn if the tokens per answer, divided by those of the first update, are below this."""
    length_ratio_warn_above: float | None = Field(default=None, ge=0)
    """Warn if the tokens per answer, divided by those of the first update, are above this."""
    length_ratio_stop_below: float | None = Field(default=0.7, ge=0)
    """Stop limit of the signal of `length_ratio_warn_below`."""
    length_ratio_stop_above: float | None = Field(default=1.5, ge=0)
    """Stop if the tokens per answer, divided by those of the first update, are above this."""

    repetition_warn_above: float | None = None
    """Warn if the fraction of repeated 3-grams within an answer, minus three times that of the first update,
    is above this."""
    repetition_stop_above: float | None = 0.05
    """Stop limit of the signal of `repetition_warn_above`."""

    eos_ratio_warn_below: float | None = Field(default=None, ge=0)
    """Warn if the fraction of answers that are not cut off, divided by that of the first update, is below
    this. A drop within sampling error is not counted."""
    eos_ratio_stop_below: float | None = Field(default=0.98, ge=0)
    """Stop limit of the signal of `eos_ratio_warn_below`."""

    kl_warn_above: float | None = None
    """Warn if the divergence from the reference by estimator k1, in nats per answer, is above this."""
    kl_stop_above: float | None = 10.0
    """Stop limit of the signal of `kl_warn_above`."""
    kl_k3_warn_above: float | None = 20.0
    """Warn if the divergence from the reference by estimator k3, in nats per answer, is above this. k3 has a
    heavy tail."""
    kl_k3_stop_above: float | None = None
    """Stop limit of the signal of `kl_k3_warn_above`."""

    overconfidence_warn_above: float | None = Field(default=None, ge=0, le=1)
    """Warn if the reward model is overconfident by more than this on the rankings in `data.fresh_rankings`:
    the fraction of labels that it claims to predict, minus the fraction that it does predict. At most 0.13 in
    16 healthy runs of the quickstart."""
    overconfidence_stop_above: float | None = Field(default=0.15, ge=0, le=1)
    """Stop limit of the signal of `overconfidence_warn_above`."""
    fresh_label_pairs: int = Field(default=500, ge=20, le=100_000)
    """Number of newest pairs of fresh labels from which overconfidence is computed; 500 give a standard error
    of 0.02."""

    entropy_ratio_warn_below: float | None = Field(default=0.5, ge=0)
    """Warn if the entropy per token, divided by that of the first update, is below this."""
    entropy_ratio_stop_below: float | None = Field(default=None, ge=0)
    """Stop limit of the signal of `entropy_ratio_warn_below`."""

    distinct_ratio_warn_below: float | None = Field(default=0.5, ge=0)
    """Warn if the fraction of distinct answers, divided by that of the first update, is below this."""
    distinct_ratio_stop_below: float | None = Field(default=None, ge=0)
    """Stop limit of the signal of `distinct_ratio_warn_below`."""

    score_length_warn_above: float | None = 0.8
    """Warn if Spearman's correlation of score and length over the answers of an update is above this."""
    score_length_warn_below: float | None = None
    """Warn if Spearman's correlation of score and length over the answers of an update is below this."""
    score_length_stop_above: float | None = None
    """Stop limit of the signal of `score_length_warn_above`."""

    scores_outside_warn_above: float | None = Field(default=0.5, ge=0)
    """Warn if the fraction of scores outside the 0.5% to 99.5% quantiles of the reward model's training
    scores is above this. It is 0.01 on the training data."""
    scores_outside_stop_above: float | None = Field(default=None, ge=0)
    """Stop limit of the signal of `scores_outside_warn_above`."""

    mismatch_warn_above: float | None = Field(default=0.1, ge=0)
    """Warn if the mean difference between the log-probs that the policy service recorded and those of the
    trainer, for the same weights, is above this, in nats per token: the service then has other weights than
    the trainer, or computes something else. It is below 0.0001 in float32 and about 0.05 in bfloat16."""
    mismatch_stop_above: float | None = Field(default=None, ge=0)
    """Stop limit of the signal of `mismatch_warn_above`."""

    def limits(self, signal: str) -> list[GuardLimit]:
        """Return the limits of a signal that are set, stop limits first."""
        return [
            GuardLimit(level, side, limit)
            for level in _LEVELS
            for side in _SIDES
            if (limit := getattr(self, f"{signal}_{level}_{side}", None)) is not None
        ]

    def judge(self, signal: str, value: float) -> tuple[Level, float | None]:
        """Return the level of a value and the limit that it crossed.

        The limit is None if it crossed none, and for a value that is not finite, which is a reason to stop.
        """
        if not math.isfinite(value):
            return "stop", None
        crossed = next((limit for limit in self.limits(signal) if limit.is_crossed(value)), None)
        return ("quiet", None) if crossed is None else (crossed.level, crossed.value)


_LEVELS: tuple[Literal["stop", "warn"], ...] = ("stop", "warn")
_SIDES: tuple[Literal["below", "above"], ...] = ("below", "above")
