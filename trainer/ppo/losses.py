"""Policy losses by their name in `ppo.loss`: from the log-probs of a micro-batch to the loss of each token.

A new loss is a function in `LOSSES`. A micro-batch holds whole rollouts, so a loss may also combine the
tokens of one. The caller multiplies by the behaviour weights, sums, and divides by the tokens of the
optimizer step.

Shapes: N response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fairlead.config.training import PpoSection
from trainer.ppo import objective


@dataclass(frozen=True, slots=True)
class LossTokens:
    """The response tokens of a micro-batch, rollout after rollout."""

    logprobs_N: Tensor
    """log π_θ, with gradient."""
    old_logprobs_N: Tensor
    """log π_prox."""
    advantages_N: Tensor
    """A."""
    rows_N: Tensor
    """The rollout of each token, counted within the micro-batch."""


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """The loss of each token, and figures that are reported with it."""

    loss_N: Tensor
    """What is minimised."""
    ratios_N: Tensor
    """π_θ/π_prox as the loss uses it."""
    is_clipped_N: Tensor
    """True where the ratio is at its limit, and the loss does not follow it any further."""


PolicyLoss = Callable[[LossTokens, PpoSection], TokenLosses]


def ppo(tokens: LossTokens, section: PpoSection) -> TokenLosses:
    """Return PPO's clipped loss; see `objective.policy_loss`."""
    clips = {"clip_range_high": section.clip_range_high, "dual_clip": section.dual_clip}
    ratios_N = objective.ratios(tokens.logprobs_N, tokens.old_logprobs_N)
    return TokenLosses(
        objective.policy_loss(ratios_N, tokens.advantages_N, clip_range=section.clip_range, **clips),
        ratios_N,
        objective.is_clipped(ratios_N.detach(), tokens.advantages_N, clip_range=section.clip_range, **clips),
    )


def cispo(tokens: LossTokens, section: PpoSection) -> TokenLosses:
    """Return −sg[clip(r, 1 − ε, 1 + ε_high)]·A·log π of each token (CISPO, MiniMax-M1, 2025, equation 4).

    No token loses its gradient: the clip only bounds its weight.
    """
    high = section.clip_range if section.clip_range_high is None else section.clip_range_high
    ratios_N = objective.ratios(tokens.logprobs_N.detach(), tokens.old_logprobs_N)
    weights_N = ratios_N.clamp(1 - section.clip_range, 1 + high)
    return TokenLosses(-weights_N * tokens.advantages_N * tokens.logprobs_N, ratios_N, weights_N != ratios_N)


LOSSES: Mapping[str, PolicyLoss] = {"ppo": ppo, "cispo": cispo}
