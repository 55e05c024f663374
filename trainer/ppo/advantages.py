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

GROUP_EPSILON = 1e-6
"""Added to a standard deviation of rewards before dividing by it, as in verl."""


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
    is_learned_B: Tensor | None = None
    """False at answers that are left out of the loss; None: all are in it."""


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


def by_group(tokens: RewardedTokens, section: PpoSection) -> Estimate:
    """Estimate by the reward of the whole answer less the mean of its group, at every token (GRPO, Shao et
    al. 2024, without its division unless `group_scale` says so: Dr. GRPO, Liu et al. 2025).
    """
    outcomes = Outcomes.of(tokens)
    centred_B = outcomes.centred_B
    if section.group_scale == "group":
        centred_B = centred_B / (outcomes.deviations_B + GROUP_EPSILON)
    elif section.group_scale == "batch" and len(centred_B) > 1:
        centred_B = centred_B / (outcomes.rewards_B.std() + GROUP_EPSILON)
    return Estimate(_per_token(centred_B, tokens))


def by_leave_one_out(tokens: RewardedTokens, section: PpoSection) -> Estimate:
    """Estimate by the reward of the whole answer less the mean of the others of its group, at every token
    (RLOO, Ahmadian et al. 2024): n/(n − 1) times what is left of the mean of the group.
    """
    outcomes = Outcomes.of(tokens)
    sizes_B = outcomes.sizes_B
    return Estimate(_per_token(outcomes.centred_B * sizes_B / (sizes_B - 1).clamp(min=1), tokens))


def by_reinforce_plus_plus_baseline(tokens: RewardedTokens, section: PpoSection) -> Estimate:
    """Estimate by the reward of the whole answer less the mean of its group, at every token, whitened over
    the tokens of the batch (REINFORCE++-baseline, Hu et al. 2025).
    """
    return Estimate(objective.whiten(_per_token(Outcomes.of(tokens).centred_B, tokens)))


def by_pairs(tokens: RewardedTokens, section: PpoSection) -> Estimate:
    """Return at the tokens of the best answer of a group the difference of its score and the worst one's, at
    those of the worst the negative, elsewhere 0 (OAIF, Guo et al. 2024; best against worst: RSO, Liu et al.
    2024).

    KL is in the loss of a pair. Answers that are left out of the loss are in no pair, and there is none in a
    group of equal scores.
    """
    scores = tokens.scores_B.tolist()
    is_learned = [True] * len(scores) if tokens.is_learned_B is None else tokens.is_learned_B.tolist()
    members: dict[int, list[int]] = {}
    for index, group in enumerate(tokens.groups_B.tolist()):
        if is_learned[index]:
            members.setdefault(group, []).append(index)
    found = [0.0] * len(scores)
    for own in members.values():
        best, worst = max(own, key=scores.__getitem__), min(own, key=scores.__getitem__)
        gap = scores[best] - scores[worst]
        if gap > GROUP_EPSILON:
            found[best], found[worst] = gap, -gap
    return Estimate(_per_token(tokens.scores_B.new_tensor(found), tokens))


def pairs(advantages_B: Tensor) -> tuple[int, ...]:
    """Return the answers of all pairs: the best and the worst of a group, those of the next group, and so on.

    Args:
        advantages_B: the advantage of each answer by `by_pairs`, in the order of groups.
    """
    best, worst = (found.nonzero().flatten().tolist() for found in (advantages_B > 0, advantages_B < 0))
    return tuple(index for pair in zip(best, worst, strict=True) for index in pair)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The rewards of whole answers in their groups, as float64. An answer without others has no baseline and
    no signal: what is left of its mean, and the deviation, are 0.

    In float32 the mean of equal rewards differs from them by up to 10⁻⁶, which `group_scale` would divide by
    a deviation of the same size.
    """

    rewards_B: Tensor
    """Sum of the rewards of each answer: its shaped score, less β·KL if that is in the reward."""
    sizes_B: Tensor
    """Number of answers in the group of each answer."""
    centred_B: Tensor
    """Reward less the mean of the group."""
    deviations_B: Tensor
    """Standard deviation of the rewards of the group, the unbiased estimate."""

    @classmethod
    def of(cls, tokens: RewardedTokens) -> Outcomes:
        """Return the outcomes of a batch."""
        rewards_B = (tokens.rewards_BT.double() * tokens.mask_BT).sum(1)
        groups_B = tokens.groups_B
        sizes_G = torch.bincount(groups_B).to(rewards_B.dtype)
        centred_B = rewards_B - _sums(rewards_B, groups_B, sizes_G)[groups_B] / sizes_G[groups_B]
        # One answer less itself may not be exactly 0.
        centred_B = torch.where(sizes_G[groups_B] > 1, centred_B, 0.0)
        variances_G = _sums(centred_B.square(), groups_B, sizes_G) / (sizes_G - 1).clamp(min=1)
        return cls(rewards_B, sizes_G[groups_B], centred_B, variances_G.sqrt()[groups_B])


def group_figures(scores_B: Tensor, groups_B: Tensor) -> dict[str, float]:
    """Return the mean of the standard deviation of scores in a group, and the share of groups of equal ones,
    from which no estimator of groups learns.
    """
    groups = Outcomes.of(
        RewardedTokens(scores_B[:, None], torch.ones_like(scores_B)[:, None], scores_B, groups_B)
    )
    return {
        "group_score_std": float(groups.deviations_B.mean()),
        "groups_without_signal": float((groups.deviations_B < GROUP_EPSILON).float().mean()),
    }


def _sums(values_B: Tensor, groups_B: Tensor, sizes_G: Tensor) -> Tensor:
    """Return the sum of the values of each group [G]."""
    return torch.zeros_like(sizes_G).index_add_(0, groups_B, values_B)


def _per_token(values_B: Tensor, tokens: RewardedTokens) -> Tensor:
    """Return the value of its answer at every response token [N], in the type of the rewards."""
    return values_B.repeat_interleave(tokens.mask_BT.sum(1)).to(tokens.rewards_BT.dtype)


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


ESTIMATORS: Mapping[str, Estimator] = {
    "gae": by_gae,
    "group": by_group,
    "rloo": by_leave_one_out,
    "reinforce++": by_reinforce_plus_plus,
    "reinforce++_baseline": by_reinforce_plus_plus_baseline,
    "pairs": by_pairs,
}
