"""Policy losses by their name in `ppo.loss`: from the log-probs of a micro-batch to the loss of each token.

A new loss is a function in `LOSSES`. A micro-batch holds whole rollouts, so a loss may also combine the
tokens of one; with those of `config.training.OF_PAIRS` it holds whole pairs. The caller adds the KL loss,
multiplies by the behaviour weights, and sums with the weights of an `Aggregation`, which are those of the
whole optimizer step: the gradient depends neither on its micro-batches nor on the ranks.

Shapes: N response tokens, A answers of a micro-batch, P pairs of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fairlead.config.training import PpoSection
from fairlead.judgments.calibration import accuracy
from trainer.pair_losses import sigmoid_losses, squared_losses
from trainer.ppo import objective

FIGURES_OF_PAIRS = ("accuracy", "margin", "chosen_change", "rejected_change")
"""Further figures of the losses of pairs, means over pairs; the preference stage has them too."""


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
    """The rollout of each token, counted within the micro-batch. With a loss of pairs rollout 2k is the best
    of a group, and 2k + 1 the worst."""
    reference_N: Tensor
    """log π_ref."""
    kl_coefficient: float
    """β of the update."""


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """The loss of each token, and figures that are reported with it."""

    loss_N: Tensor
    """What is minimised."""
    ratios_N: Tensor
    """π_θ/π_prox as the loss uses it."""
    is_clipped_N: Tensor
    """True where the ratio is at its limit, and the loss does not follow it any further."""
    of_pairs: Mapping[str, float] = field(default_factory=dict)
    """Of a loss of pairs: the sum of each of `FIGURES_OF_PAIRS` over the pairs."""


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


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The pairs of a micro-batch; Δ of an answer is log π − log π_ref, summed over its tokens."""

    change_P2: Tensor
    """Δ of the best and of the worst answer, with gradient."""
    lengths_P2: Tensor
    """Their tokens."""
    gaps_P: Tensor
    """By how much the reward of the best answer is larger."""

    @classmethod
    def of(cls, tokens: LossTokens) -> _Pairs:
        lengths_A = torch.bincount(tokens.rows_N)
        change_N = tokens.logprobs_N - tokens.reference_N
        change_A = change_N.new_zeros(len(lengths_A)).index_add(0, tokens.rows_N, change_N)
        advantages_A = tokens.advantages_N[lengths_A.cumsum(0) - lengths_A]
        return cls(change_A.reshape(-1, 2), lengths_A.reshape(-1, 2), advantages_A[::2])

    def losses(self, tokens: LossTokens, losses_P: Tensor, margins_P: Tensor) -> TokenLosses:
        """Return the loss of each pair at every token of both answers: its mean over tokens and answers,
        which `Aggregation` takes, is the mean over pairs.
        """
        margins = margins_P.detach().tolist()
        best_P, worst_P = self.change_P2.detach().unbind(1)
        return TokenLosses(
            losses_P[tokens.rows_N // 2],
            objective.ratios(tokens.logprobs_N.detach(), tokens.old_logprobs_N),
            torch.zeros_like(tokens.rows_N, dtype=torch.bool),
            {
                "accuracy": accuracy(margins) * len(margins) if margins else 0.0,
                "margin": tokens.kl_coefficient * sum(margins),
                "chosen_change": float(best_P.sum()),
                "rejected_change": float(worst_P.sum()),
            },
        )


def online_dpo(tokens: LossTokens, section: PpoSection) -> TokenLosses:
    """Return −log σ(β·(Δ_best − Δ_worst)) of each pair (DPO, Rafailov et al. 2023, equation 7; online: OAIF,
    Guo et al. 2024).
    """
    pairs = _Pairs.of(tokens)
    margins_P = pairs.change_P2[:, 0] - pairs.change_P2[:, 1]
    return pairs.losses(tokens, sigmoid_losses(margins_P, beta=tokens.kl_coefficient), margins_P)


def online_dpo_soft(tokens: LossTokens, section: PpoSection) -> TokenLosses:
    """Return the mean of `online_dpo` over labels that prefer the best answer with the probability σ(r_best −
    r_worst), Bradley and Terry's.

    It is smallest where β·(Δ_best − Δ_worst) = r_best − r_worst, whichever answers are compared: its optimum
    is that of the reward with the KL penalty, π* ∝ π_ref·exp(r/β).
    """
    pairs = _Pairs.of(tokens)
    margins_P = pairs.change_P2[:, 0] - pairs.change_P2[:, 1]
    losses_P = sigmoid_losses(
        margins_P, beta=tokens.kl_coefficient, label_smoothing=torch.sigmoid(-pairs.gaps_P)
    )
    return pairs.losses(tokens, losses_P, margins_P)


def online_ipo(tokens: LossTokens, section: PpoSection) -> TokenLosses:
    """Return IPO's loss of each pair, with Δ per token."""
    pairs = _Pairs.of(tokens)
    change_P2 = pairs.change_P2 / pairs.lengths_P2
    margins_P = change_P2[:, 0] - change_P2[:, 1]
    return pairs.losses(tokens, squared_losses(margins_P, beta=tokens.kl_coefficient), margins_P)


LOSSES: Mapping[str, PolicyLoss] = {
    "ppo": ppo,
    "gspo": gspo,
    "cispo": cispo,
    "online_dpo": online_dpo,
    "online_dpo_soft": online_dpo_soft,
    "online_ipo": online_ipo,
}


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
