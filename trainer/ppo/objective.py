"""PPO's objective on one page, in the order in which it is computed: rewards, advantages, losses, β.

score → shaped score → reward of every token (minus β·KL) → advantages and returns → clipped losses. Pure
functions of tensors; `trainer.ppo.step` calls them. Knows nothing about models, the queue or checkpoints.

Losses are per token: the caller sums them and divides by the tokens of the whole optimizer step. π_prox is
the policy before the first optimizer step on a batch, π_behav the policy that sampled the tokens.

References: PPO (Schulman et al. 2017), GAE (Schulman et al. 2016), Approximating KL Divergence (Schulman
2020), Fine-Tuning Language Models from Human Preferences (Ziegler et al. 2019), The N Implementation Details
of RLHF with PPO (Huang et al. 2024).

Shapes: B rollouts, T response positions (right-padded), N response tokens of all rollouts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairlead.config.training import PpoSection
from trainer.ppo.score_scale import ScoreScale

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to ± this before exp; e²⁰ is beyond any clip range and far from overflow."""
MAX_TOKEN_KL = 10.0
"""Most nats that `k2` or `k3` of one token counts in the reward: both grow without bound where the reference
finds a token improbable, and one token would decide an update. verl limits k3 to the same."""
MAX_KL_RATIO = 10.0
"""Largest probability ratio by which `kl_loss` weights a token; OpenRLHF limits it to the same."""
SCALE_EPSILON = 1e-8
"""Added to the standard deviation of the scores before dividing by it."""
MAX_CONTROL_ERROR = 0.2
"""The adaptive controller's relative error is clipped to ± this (Ziegler et al. 2019, section 2.2)."""


def shaped_scores(scores_B: Tensor, cut_off_B: Tensor, section: PpoSection, scale: ScoreScale) -> Tensor:
    """Return the reward of each whole answer [B]: the score normalised, clipped, less the EOS penalty.

    Args:
        scores_B: scores of the reward model.
        cut_off_B: True where the answer reached the length limit without an EOS.
        section: whether to normalise, where to clip, and the penalty for a missing EOS; unset means 0.
        scale: mean and deviation of all scores so far; read only with `normalise_scores`.
    """
    scores_B = scaled_scores(scores_B, section, scale)
    penalty = section.missing_eos_penalty or 0.0
    return scores_B.clamp(-section.score_clip, section.score_clip) - penalty * cut_off_B


def scaled_scores(scores_B: Tensor, section: PpoSection, scale: ScoreScale) -> Tensor:
    """Return the scores [B], with `normalise_scores` as distances from the mean in deviations."""
    if not section.normalise_scores:
        return scores_B
    return (scores_B - scale.mean) / (scale.deviation + SCALE_EPSILON)


def overlong_penalties(lengths_B: Tensor, section: PpoSection, *, max_new_tokens: int) -> Tensor:
    """Return what the length of each answer costs [B]: 0 up to a buffer of tokens before the limit, then
    rising in proportion to `overlong_penalty` at the limit (Yu et al. 2025, DAPO, equation 13).

    Args:
        lengths_B: response tokens of each rollout.
        section: the largest penalty and the size of the buffer.
        max_new_tokens: the limit.
    """
    buffer = section.overlong_buffer_tokens
    beyond_B = (lengths_B - (max_new_tokens - buffer)).clamp(0, buffer)
    return section.overlong_penalty * beyond_B / buffer


def k1(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Estimate KL(π ‖ π_ref) by log π − log π_ref: unbiased, may be negative."""
    return logprobs_N - reference_N


def k2(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Estimate KL(π ‖ π_ref) by ½ (log π − log π_ref)²: biased, low variance."""
    return (logprobs_N - reference_N).square() / 2


def k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Estimate KL(π ‖ π_ref) by π_ref/π − 1 − log(π_ref/π): unbiased and never negative."""
    log_ratio_N = (reference_N - logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio_N.expm1() - log_ratio_N


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""The estimators by their name in `ppo.kl_estimator` (Schulman 2020)."""


def penalty_kl(logprobs_N: Tensor, reference_N: Tensor, *, estimator: str) -> Tensor:
    """Return the KL estimate of each token [N] as the reward charges it: `k2` and `k3` up to MAX_TOKEN_KL.

    `k1`, whose mean is the divergence, is linear in the log-ratio and has no limit.

    Args:
        logprobs_N: log π of each token.
        reference_N: log π_ref of each token.
        estimator: a name of `KL_ESTIMATORS`.
    """
    kl_N = KL_ESTIMATORS[estimator](logprobs_N, reference_N)
    return kl_N if estimator == "k1" else kl_N.clamp(max=MAX_TOKEN_KL)


def kl_loss(logprobs_N: Tensor, old_logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Return the divergence of each token from the reference as a loss: r·k3, whose gradient is r·k1·∇log π.

    With r = π/π_old the gradient is unbiased for the divergence at the sampled contexts, unlike that of k3
    itself. It is computed as the gradient of r·k2 with r constant, which is the same and cannot overflow.

    Args:
        logprobs_N: log π, with gradient.
        old_logprobs_N: log π_old of the policy that sampled the tokens.
        reference_N: log π_ref.
    """
    ratios_N = ratios(logprobs_N.detach(), old_logprobs_N).clamp(max=MAX_KL_RATIO)
    value_N = k3(logprobs_N.detach(), reference_N)
    surrogate_N = k2(logprobs_N, reference_N)
    return ratios_N * (value_N + surrogate_N - surrogate_N.detach())


def penalised_rewards(kl_BT: Tensor, scores_B: Tensor, lengths_B: Tensor, *, coefficient: float) -> Tensor:
    """Return the reward of every token [B, T]: −β·KL, plus the shaped score on the last response token.

    Args:
        kl_BT: KL estimate of each response token, right-padded with 0.
        scores_B: shaped score of each rollout.
        lengths_B: response tokens of each rollout, at least 1.
        coefficient: β.
    """
    rewards_BT = -coefficient * kl_BT
    rows_B = torch.arange(len(scores_B), device=scores_B.device)
    rewards_BT[rows_B, lengths_B - 1] += scores_B
    return rewards_BT


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return generalised advantage estimates and returns [B, T] of every response token, 0 where masked.

    The value after the last token is 0, whether the answer ended or was cut off. The returns are the
    advantages before whitening plus the values.

    Args:
        rewards_BT: reward of each token.
        values_BT: value of the critic at the position that predicts each token.
        mask_BT: 1 at response tokens, which come first in each row.
        gamma: discount.
        lam: λ.
    """
    mask_BT = mask_BT.to(rewards_BT.dtype)
    rewards_BT = rewards_BT * mask_BT
    values_BT = values_BT * mask_BT
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = torch.zeros_like(rewards_BT[:, 0])
    next_advantage_B = torch.zeros_like(rewards_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        # Masked positions stay 0, so that nothing flows in from after the end.
        next_advantage_B = (delta_B + gamma * lam * next_advantage_B) * mask_BT[:, t]
        advantages_BT[:, t] = next_advantage_B
        next_value_B = values_BT[:, t]
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def whiten(values_N: Tensor, *, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Scale to variance 1 (biased estimate), and to mean 0 unless `shift_mean` is False.

    Computed in float64: equal values have the mean 0 then, and not the rounding of a mean in float32 times
    10⁴.
    """
    wide_N = values_N.double()
    mean = wide_N.mean()
    variance = wide_N.var(unbiased=False)
    whitened_N = (wide_N - mean) * torch.rsqrt(variance + epsilon)
    return (whitened_N if shift_mean else whitened_N + mean).to(values_N.dtype)


def ratios(logprobs_N: Tensor, old_logprobs_N: Tensor) -> Tensor:
    """Return π/π_old of each token; the log-ratio is clamped before exp."""
    return (logprobs_N - old_logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def answer_means(values_N: Tensor, rows_N: Tensor) -> Tensor:
    """Return at each token the mean of the values of its answer [N].

    Args:
        values_N: a value of each token.
        rows_N: the answer of each token, from 0.
    """
    counts_R = torch.bincount(rows_N)
    sums_R = values_N.new_zeros(len(counts_R)).index_add_(0, rows_N, values_N)
    return (sums_R / counts_R.clamp(min=1))[rows_N]


def answer_ratios(logprobs_N: Tensor, old_logprobs_N: Tensor, rows_N: Tensor) -> Tensor:
    """Return at each token the ratio of its answer, exp(mean of log π/π_old over its tokens).

    Its gradient at a token is the ratio times ∇log π of that token, so that advantages may differ within an
    answer (Zheng et al. 2025, GSPO-token, equation 14).

    Args:
        logprobs_N: log π, with gradient.
        old_logprobs_N: log π_old.
        rows_N: the answer of each token, from 0.
    """
    means_N = answer_means(logprobs_N.detach() - old_logprobs_N, rows_N)
    return ratios(logprobs_N, logprobs_N.detach()) * ratios(means_N, torch.zeros_like(means_N))


def behaviour_weights(proximal_N: Tensor, behaviour_N: Tensor, *, limit: float) -> Tensor:
    """Return min(π_prox/π_behav, limit) of each token: the weight of a token sampled by older weights.

    Only this weight is truncated, and no gradient flows through it (decoupled PPO, Hilton et al. 2022;
    AReaL, Fu et al. 2025). It is exactly 1 where both log-probs are equal.
    """
    return ratios(proximal_N.detach(), behaviour_N).clamp(max=limit)


def masked_weights(proximal_N: Tensor, behaviour_N: Tensor, *, low: float, high: float) -> Tensor:
    """Return π_prox/π_behav of each token, and 0 where it is outside [low, high] (IcePop, Ling team 2025)."""
    weights_N = ratios(proximal_N.detach(), behaviour_N)
    return torch.where((weights_N >= low) & (weights_N <= high), weights_N, 0.0)


def sequence_masked_weights(
    proximal_N: Tensor, behaviour_N: Tensor, rows_N: Tensor, *, low: float, high: float
) -> Tensor:
    """Return min(π_prox/π_behav, high) of each token, and 0 in answers whose geometric mean is outside
    [low, high].

    Args:
        proximal_N: log π_prox.
        behaviour_N: log π_behav.
        rows_N: the answer of each token, from 0.
        low: smallest geometric mean that counts.
        high: largest geometric mean that counts, and the limit of the weight of a token.
    """
    means_N = answer_means(proximal_N.detach() - behaviour_N, rows_N)
    geometric_N = ratios(means_N, torch.zeros_like(means_N))
    weights_N = behaviour_weights(proximal_N, behaviour_N, limit=high)
    return torch.where((geometric_N >= low) & (geometric_N <= high), weights_N, 0.0)


def policy_loss(
    ratios_N: Tensor,
    advantages_N: Tensor,
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """Return −min(r·A, clip(r, 1 − ε, 1 + ε_high)·A) of each token (Schulman et al. 2017).

    With a dual clip c the loss is at most −c·A where A < 0.

    Args:
        ratios_N: π_θ/π_prox.
        advantages_N: A.
        clip_range: ε.
        clip_range_high: ε_high (clip-higher, DAPO, Yu et al. 2025); None: ε.
        dual_clip: c (Ye et al. 2020); None: no dual clip.
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
    """Return True for each token whose gradient `policy_loss` stops.

    The ratio has left the clip range in the direction of the advantage, or it is beyond the dual clip at a
    negative advantage.
    """
    high = clip_range if clip_range_high is None else clip_range_high
    above_N = (ratios_N > 1 + high) & (advantages_N > 0)
    below_N = (ratios_N < 1 - clip_range) & (advantages_N < 0)
    if dual_clip is not None:
        below_N = below_N | ((ratios_N > dual_clip) & (advantages_N < 0))
    return above_N | below_N


def value_loss(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, *, clip_width: float) -> Tensor:
    """Return ½·max((V − R)², (clip(V, V_old ± width) − R)²) of each token (as in OpenAI's baselines).

    Args:
        values_N: V, values of the critic being trained.
        old_values_N: V_old, its values before the first step on this batch.
        returns_N: R, the targets.
        clip_width: `value_clip_range` times the standard deviation of the returns.
    """
    clipped_N = old_values_N + (values_N - old_values_N).clamp(-clip_width, clip_width)
    return torch.maximum((values_N - returns_N).square(), (clipped_N - returns_N).square()) / 2


def scheduled_coefficient(update: int, section: PpoSection) -> float:
    """Return β of an update, from 0, with `kl_control = "linear"`: from `kl_coefficient` in the first update
    that trains the policy to `kl_coefficient_end` in the last one of the schedule, and that from then on.
    """
    done = (update - section.critic_warmup_updates) / max(1, section.num_kl_schedule_updates - 1)
    done = min(1.0, max(0.0, done))
    return (1 - done) * section.kl_coefficient + done * section.final_kl_coefficient


def adapted_coefficient(
    coefficient: float, *, divergence: float, target: float, horizon: float, episodes: int
) -> float:
    """Return β of the next update: β·(1 + clip(KL/target − 1, ±0.2)·n/horizon).

    Args:
        coefficient: β of this update.
        divergence: KL by k1, summed over the tokens of a rollout, mean over the rollouts.
        target: the KL to aim for.
        horizon: episodes over which the controller acts.
        episodes: n, rollouts of this update.
    """
    error = max(-MAX_CONTROL_ERROR, min(MAX_CONTROL_ERROR, divergence / target - 1))
    return coefficient * (1 + error * episodes / horizon)
