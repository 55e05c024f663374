"""Policy losses by their name in `ppo.loss`: from the log-probs of a micro-batch to the loss of each token.

A new loss is a function in `LOSSES`. A micro-batch holds whole rollouts, so a loss may also combine the
tokens of one. The caller adds the KL loss, multiplies by the behaviour weights, and sums with the weights of
an `Aggregation`, which are those of the whole optimizer step: the gradient depends neither on its
micro-batches nor on the ranks.

Shapes: N response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    ratios_N = objective.ratios(tokens.logprobs_N, tokens.old_logprobs_N)
    return _clipped(ratios_N, tokens.advantages_N, section)


def gspo(tokens: LossTokens, section: PpoSection) -> TokenLosses:
    """Return PPO's clipped loss with the ratio of the whole answer at every token (GSPO, Zheng et al. 2025).

    Its mean over an answer is the paper's loss of the answer, and so is the gradient.
    """
    ratios_N = objective.answer_ratios(tokens.logprobs_N, tokens.old_logprobs_N, tokens.rows_N)
    return _clipped(ratios_N, tokens.advantages_N, section)


def cispo(tokens: LossTokens, section: PpoSection) -> TokenLosses:
    """Return −sg[clip(r, 1 − ε, 1 + ε_high)]·A·log π of each token (CISPO, MiniMax-M1, 2025, equation 4).

    No token loses its gradient: the clip only bounds its weight.
    """
    high = section.clip_range if section.clip_range_high is None else section.clip_range_high
    ratios_N = objective.ratios(tokens.logprobs_N.detach(), tokens.old_logprobs_N)
    weights_N = ratios_N.clamp(1 - section.clip_range, 1 + high)
    return TokenLosses(-weights_N * tokens.advantages_N * tokens.logprobs_N, ratios_N, weights_N != ratios_N)


def _clipped(ratios_N: Tensor, advantages_N: Tensor, section: PpoSection) -> TokenLosses:
    clips = {"clip_range_high": section.clip_range_high, "dual_clip": section.dual_clip}
    return TokenLosses(
        objective.policy_loss(ratios_N, advantages_N, clip_range=section.clip_range, **clips),
        ratios_N,
        objective.is_clipped(ratios_N.detach(), advantages_N, clip_range=section.clip_range, **clips),
    )


LOSSES: Mapping[str, PolicyLoss] = {"ppo": ppo, "gspo": gspo, "cispo": cispo}


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How the losses of the tokens of an optimizer step become one number."""

    divisor: float
    """Of the sum over the step."""
    by_answer: bool
    """Whether the loss of a token is divided by the tokens of its answer first."""

    @classmethod
    def of(cls, name: str, lengths: Sequence[int], *, max_new_tokens: int) -> Aggregation:
        """Return the aggregation of an optimizer step.

        Args:
            name: `PpoSection.aggregation`.
            lengths: response tokens of each rollout of the step, on all ranks.
            max_new_tokens: the limit of the length.
        """
        if name == "tokens":
            return cls(sum(lengths), by_answer=False)
        if name == "constant":
            return cls(len(lengths) * max_new_tokens, by_answer=False)
        return cls(len(lengths), by_answer=True)

    def total(self, loss_N: Tensor, lengths_N: Tensor) -> Tensor:
        """Return the contribution of a micro-batch to the sum over the step.

        Args:
            loss_N: loss of each token.
            lengths_N: response tokens of the answer of each token.
        """
        return (loss_N / lengths_N if self.by_answer else loss_N).sum()
