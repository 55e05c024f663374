"""What stays fixed during the optimizer steps of an update, and the figures of its rollouts.

Made by `step.prepare`. Shapes: B rollouts, T response positions, N response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fairlead.config.training import OF_GROUPS, PpoSection
from trainer.ppo import objective
from trainer.ppo.advantages import group_figures
from trainer.ppo.batch import RolloutBatch


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """A rollout batch with everything that stays fixed during its optimizer steps."""

    batch: RolloutBatch
    """The rollouts."""
    old_logprobs_N: Tensor
    """log π_prox; where it is not computed, the recorded behaviour log-probs."""
    behaviour_weights_N: Tensor
    """π_prox/π_behaviour, truncated or masked; exactly 1 where π_prox is not computed."""
    advantages_N: Tensor
    """By the section's estimator."""
    values: ValueTargets | None
    """What the critic learns; None without a critic."""
    learned: tuple[int, ...]
    """The rollouts that are in the loss; with a loss of pairs best, worst, best, worst, …"""
    kl_coefficient: float
    """β of the update."""
    has_kl_loss: bool
    """Whether the KL penalty is in the loss and not in the reward."""
    max_new_tokens: int
    """Limit of the length of an answer."""


@dataclass(frozen=True, slots=True)
class ValueTargets:
    """What the critic learns from a batch."""

    old_values_N: Tensor
    """Its values before the first step."""
    returns_N: Tensor
    """Unwhitened advantages + old values."""
    clip_width: float
    """Largest change of a value before the clip, in the unit of the returns."""


def figures(
    prepared: PreparedBatch, scores_B: Tensor, rewards_BT: Tensor, section: PpoSection
) -> dict[str, float]:
    """Return the figures of the rollouts; divergences are sums over an answer, by each estimator.

    Args:
        prepared: the batch.
        scores_B: shaped scores.
        rewards_BT: rewards of the tokens, with the KL penalty.
        section: the recipe.
    """
    batch = prepared.batch
    count = len(batch.sequences)
    divergences = {
        name: float(estimate(prepared.old_logprobs_N, batch.reference_N).sum()) / count
        for name, estimate in objective.KL_ESTIMATORS.items()
    }
    found = {
        "reward": float(batch.scores_B.mean()),
        "reward_std": float(batch.scores_B.std(unbiased=False)),
        "reward_with_kl": float(rewards_BT.sum(1).mean()),
        "kl": divergences["k1"],
        "kl_k2": divergences["k2"],
        "kl_k3": divergences["k3"],
        **({"explained_variance": _explained_variance(prepared.values)} if prepared.values else {}),
        "response_length": float(batch.lengths_B.float().mean()),
        "eos_rate": float((~batch.cut_off_B).float().mean()),
        "tokens": float(len(batch.behaviour_N)),
    }
    if section.estimator in OF_GROUPS:
        found |= group_figures(scores_B, batch.groups_B)
    if section.answers_per_loss == 2:
        found["groups_without_signal"] = 1 - len(prepared.learned) / 2 / (int(batch.groups_B.max()) + 1)
    if section.mask_cut_off:
        found["masked_rollouts"] = 1 - int((~batch.cut_off_B).sum()) / count
    if batch.stale_B.any():
        found["stale_rollouts"] = float(batch.stale_B.sum()) / count
    is_corrected = batch.stale_B | (section.proximal_logprobs == "all")
    if section.answers_per_loss == 1 and is_corrected.any():
        weights_N = prepared.behaviour_weights_N[batch.per_token(is_corrected)]
        is_cut_N = weights_N == 0
        if section.behaviour_weight == "truncate":
            is_cut_N = weights_N >= section.max_behaviour_weight
        found |= {
            "behaviour_weight": float(weights_N.mean()),
            "behaviour_weight_cut": float(is_cut_N.float().mean()),
        }
    return found


def _explained_variance(values: ValueTargets) -> float:
    variance = values.returns_N.var(unbiased=False)
    unexplained = (values.returns_N - values.old_values_N).var(unbiased=False)
    return float(1 - unexplained / variance) if variance > 0 else float("nan")
