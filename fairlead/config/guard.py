"""`[guard]`: signals of reward hacking, watched at every update of PPO, and what is done about them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.config.section import Section


class GuardSection(Section):
    """Limits of the signals, against the first update: a crossed `warn` limit is told, a crossed `stop` limit
    is told as an error and, with `action = "stop"`, ends the run at its last good checkpoint.

    The stop limits fired on runs that went wrong and never on healthy ones; entropy and variety halve in
    healthy runs too. A limit that is not set never fires.
    """

    action: Literal["off", "warn", "stop"] = "warn"
    """`warn`: signals are told and training goes on; `stop`: a stop limit ends the run; `off`: only the
    figures are written."""

    length_ratio_warn_below: float | None = Field(default=None, ge=0)
    """Tokens per answer ÷ those of the first update."""
    length_ratio_warn_above: float | None = Field(default=None, ge=0)
    """Of the same, upper side."""
    length_ratio_stop_below: float | None = Field(default=0.7, ge=0)
    """Of the same, lower side."""
    length_ratio_stop_above: float | None = Field(default=1.5, ge=0)
    """Of the same, upper side."""

    repetition_warn_above: float | None = None
    """Share of 3-grams that stood in the same answer before, less three times that of the first update."""
    repetition_stop_above: float | None = 0.05
    """Of the same."""

    eos_ratio_warn_below: float | None = Field(default=None, ge=0)
    """Share of answers that end ÷ that of the first update; the drop that chance explains does not count."""
    eos_ratio_stop_below: float | None = Field(default=0.98, ge=0)
    """Of the same."""

    kl_warn_above: float | None = None
    """Nats per answer from the reference, by k1."""
    kl_stop_above: float | None = 10.0
    """Of the same."""
    kl_k3_warn_above: float | None = 20.0
    """Nats per answer by k3, whose tail is heavy."""
    kl_k3_stop_above: float | None = None
    """Of the same."""

    overconfidence_warn_above: float | None = Field(default=None, ge=0, le=1)
    """Share of fresh labels on the policy's own answers that the reward model claims to foresee, less the
    share that it does: of the rankings in `data.fresh_rankings`. At most 0.13 on 16 healthy runs of the
    quickstart."""
    overconfidence_stop_above: float | None = Field(default=0.15, ge=0, le=1)
    """Of the same."""
    fresh_label_pairs: int = Field(default=500, ge=20, le=100_000)
    """Pairs of fresh labels that are judged together, the newest; 500 know the share to ± 0.02 (one standard
    error)."""

    entropy_ratio_warn_below: float | None = Field(default=0.5, ge=0)
    """Entropy per token ÷ that of the first update."""
    entropy_ratio_stop_below: float | None = Field(default=None, ge=0)
    """Of the same."""

    distinct_ratio_warn_below: float | None = Field(default=0.5, ge=0)
    """Share of different answers ÷ that of the first update."""
    distinct_ratio_stop_below: float | None = Field(default=None, ge=0)
    """Of the same."""

    score_length_warn_above: float | None = 0.8
    """Spearman's correlation of score and length over an update's answers."""
    score_length_warn_below: float | None = None
    """Of the same, lower side."""
    score_length_stop_above: float | None = None
    """Of the same."""

    scores_outside_warn_above: float | None = Field(default=0.5, ge=0)
    """Share of scores outside the 0.5% to 99.5% quantiles of the reward model's training scores; 0.01 on its
    own data."""
    scores_outside_stop_above: float | None = Field(default=None, ge=0)
    """Of the same."""
