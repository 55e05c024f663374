"""Generalised advantage estimation and whitening (Schulman et al. 2016; REFERENCES of the method: N
Implementation Details of RLHF with PPO). Pure functions of rectangles with a mask.

Shapes: B rollouts, T response positions, right-padded; N response tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of every response token.

    The value behind the last token is 0, whether the answer ended or was cut off. Returns are unwhitened
    advantages + values.

    Args:
        rewards_BT: reward of each token.
        values_BT: critic's value at the position that predicts each token.
        mask_BT: 1 at real tokens, which stand at the left.
        gamma: discount.
        lam: λ.

    Returns:
        advantages and returns [B, T], 0 where masked.
    """
    mask_BT = mask_BT.to(rewards_BT.dtype)
    rewards_BT, values_BT = rewards_BT * mask_BT, values_BT * mask_BT
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = next_advantage_B = torch.zeros_like(rewards_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        # Masked positions stay 0, so nothing flows in from behind the end.
        next_advantage_B = (delta_B + gamma * lam * next_advantage_B) * mask_BT[:, t]
        advantages_BT[:, t] = next_advantage_B
        next_value_B = values_BT[:, t]
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def whiten(values_N: Tensor, *, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Scales to variance 1 (biased variance) and, unless told otherwise, mean 0."""
    mean, variance = values_N.mean(), values_N.var(unbiased=False)
    whitened_N = (values_N - mean) * torch.rsqrt(variance + epsilon)
    return whitened_N if shift_mean else whitened_N + mean
