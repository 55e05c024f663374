"""Advantage estimators by their name in `ppo.estimator`: from the reward of every token to its advantage.

Called once for a batch, before its first optimizer step; every rank computes the same. A new estimator is a
function in `ESTIMATORS`. Only those of `config.training.WITH_CRITIC` get values, and return what the critic
is to learn. Knows nothing about models or losses.

Shapes: B rollouts, T response positions (right-padded), N response tokens of all rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fairlead.config.training import PpoSection
from trainer.ppo import objective


@dataclass(frozen=True, slots=True)
class RewardedTokens:
    """What an estimator reads."""

    rewards_BT: Tensor
    """Reward of every response token: −β·KL, plus the shaped score on the last one; 0 where masked."""
    mask_BT: Tensor
    """True at response tokens, which come first in each row."""
    scores_B: Tensor
    """Shaped score of each answer, without the KL penalty."""
    groups_B: Tensor
    """The group of each answer, ascending from 0."""
    values_BT: Tensor | None = None
    """Value of the critic at the position that predicts each token; None without a critic."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an estimator returns."""

    advantages_N: Tensor
    """The advantage of every response token, as the loss uses it."""
    returns_N: Tensor | None = None
    """What the critic learns to predict; None without a critic."""


Estimator = Callable[[RewardedTokens, PpoSection], Estimate]


def by_gae(tokens: RewardedTokens, section: PpoSection) -> Estimate:
    """Estimate by `objective.gae`, whitened over the batch; the returns are not whitened."""
    assert tokens.values_BT is not None
    advantages_BT, returns_BT = objective.gae(
        tokens.rewards_BT,
        tokens.values_BT,
        tokens.mask_BT,
        gamma=section.gae_gamma,
        lam=section.gae_lambda,
    )
    return Estimate(objective.whiten(advantages_BT[tokens.mask_BT]), returns_BT[tokens.mask_BT])


def by_reinforce_plus_plus(tokens: RewardedTokens, section: PpoSection) -> Estimate:
    """Estimate by the discounted sum of the rewards from each token on, whitened over the tokens of the batch
    (REINFORCE++, Hu et al. 2025).
    """
    returns_BT = returns_to_go(tokens.rewards_BT, tokens.mask_BT, gamma=section.gae_gamma)
    return Estimate(objective.whiten(returns_BT[tokens.mask_BT]))


def returns_to_go(rewards_BT: Tensor, mask_BT: Tensor, *, gamma: float) -> Tensor:
    """Return Σ_k γ^k · reward at t + k for every response token [B, T], 0 where masked."""
    rewards_BT = rewards_BT * mask_BT
    returns_BT = torch.zeros_like(rewards_BT)
    next_B = torch.zeros_like(rewards_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        next_B = rewards_BT[:, t] + gamma * next_B
        returns_BT[:, t] = next_B
    return returns_BT * mask_BT


ESTIMATORS: Mapping[str, Estimator] = {"gae": by_gae, "reinforce++": by_reinforce_plus_plus}
