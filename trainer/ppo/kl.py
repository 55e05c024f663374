"""Estimators of KL(π ‖ π_ref) from samples of π, and the penalty that they put into the reward.

Schulman, Approximating KL Divergence (2020); the controller of β by Ziegler et al. 2019, section 2.2.
Shapes: B rollouts, T response positions, N response tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to ± this before exp; e²⁰ is beyond any clip and far from overflow."""


def k1(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Log π − log π_ref: unbiased, may be negative."""
    return logprobs_N - reference_N


def k2(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """½ (log π − log π_ref)²: biased, low variance."""
    return (logprobs_N - reference_N).square() / 2


def k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """π_ref/π − 1 − log(π_ref/π): unbiased and never negative."""
    log_ratio_N = (reference_N - logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio_N.expm1() - log_ratio_N


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""By the name that `ppo.kl_estimator` gives them."""

MAX_CONTROL_ERROR = 0.2
"""The controller's relative error is clipped to ± this."""


def adapted_coefficient(
    coefficient: float, *, divergence: float, target: float, horizon: float, episodes: int
) -> float:
    """β of the next update: β·(1 + clip(KL/target − 1, ±0.2)·n/horizon).

    Args:
        coefficient: β of this update.
        divergence: mean over the rollouts of the sum over their tokens, by k1.
        target: where it shall be.
        horizon: episodes over which the controller acts.
        episodes: n, rollouts of this update.
    """
    error = max(-MAX_CONTROL_ERROR, min(MAX_CONTROL_ERROR, divergence / target - 1))
    return coefficient * (1 + error * episodes / horizon)


def penalised_rewards(kl_BT: Tensor, scores_B: Tensor, lengths_B: Tensor, *, coefficient: float) -> Tensor:
    """Reward of every token: −β·KL, and the score on the last response token.

    Args:
        kl_BT: estimate at each response token, right-padded with 0.
        scores_B: score of each rollout, penalties included.
        lengths_B: response tokens of each rollout, at least 1.
        coefficient: β.

    Returns:
        rewards [B, T].
    """
    rewards_BT = -coefficient * kl_BT
    rows_B = torch.arange(len(scores_B), device=scores_B.device)
    rewards_BT[rows_B, lengths_B - 1] += scores_B
    return rewards_BT
