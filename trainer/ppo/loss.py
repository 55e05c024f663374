"""PPO's clipped losses, token by token; who sums them divides by the tokens of the whole optimizer step.

Schulman et al. 2017; value clip as in OpenAI's baselines. π_prox is the policy before the first step on a
batch, π_behav the one that sampled. Shapes: N response tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.ppo.kl import MAX_LOG_RATIO


def ratios(logprobs_N: Tensor, old_logprobs_N: Tensor) -> Tensor:
    """π/π_old of each token; the log-ratio is clamped before exp."""
    return (logprobs_N - old_logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def behaviour_weights(proximal_N: Tensor, behaviour_N: Tensor, *, limit: float) -> Tensor:
    """min(π_prox/π_behav, limit) of each token: what a token sampled by older weights counts.

    Only this weight is truncated, and no gradient flows through it (decoupled PPO, Hilton et al. 2022;
    AReaL, Fu et al. 2025). Exactly 1 where both are the same.
    """
    return ratios(proximal_N.detach(), behaviour_N).clamp(max=limit)


def policy_loss(
    ratios_N: Tensor,
    advantages_N: Tensor,
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """−min(r·A, clip(r, 1 − ε, 1 + ε_high)·A) of each token; with a dual clip c at most −c·A where A < 0.

    Args:
        ratios_N: π_θ/π_prox.
        advantages_N: A.
        clip_range: ε.
        clip_range_high: ε_high (clip-higher, DAPO, Yu et al. 2025); ε if None.
        dual_clip: c (Ye et al. 2020); none if None.
    """
    high = clip_range if clip_range_high is None else clip_range_high
    clipped_N = ratios_N.clamp(1 - clip_range, 1 + high)
    loss_N = -torch.minimum(ratios_N * advantages_N, clipped_N * advantages_N)
    if dual_clip is None:
        return loss_N
    return torch.where(advantages_N < 0, torch.minimum(loss_N, -dual_clip * advantages_N), loss_N)


def is_clipped(
    ratios_N: Tensor,
    advantages_N: Tensor,
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """Where the clip stops the gradient: the ratio has left the range in the direction of the advantage, or a
    bad token's ratio has gone beyond the dual clip.
    """
    high = clip_range if clip_range_high is None else clip_range_high
    above_N = (ratios_N > 1 + high) & (advantages_N > 0)
    below_N = (ratios_N < 1 - clip_range) & (advantages_N < 0)
    if dual_clip is not None:
        below_N = below_N | ((ratios_N > dual_clip) & (advantages_N < 0))
    return above_N | below_N


def value_loss(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, *, clip_width: float) -> Tensor:
    """½·max((V − R)², (clip(V, V_old ± width) − R)²) of each token.

    Args:
        values_N: values of the critic that is trained.
        old_values_N: its values before the first step on this batch.
        returns_N: what it should say.
        clip_width: `value_clip_range` times the standard deviation of the returns.
    """
    clipped_N = old_values_N + (values_N - old_values_N).clamp(-clip_width, clip_width)
    return torch.maximum((values_N - returns_N).square(), (clipped_N - returns_N).square()) / 2
