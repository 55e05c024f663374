"""`[ppo]`: the reinforcement learning stage."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fairlead.config.compute import TrainingSection
from fairlead.config.lora import LoraSection


class PpoSection(TrainingSection):
    """PPO with a separate critic and a KL penalty to the reference in the reward."""

    updates: int = Field(default=100, ge=1, le=10_000_000)
    """Rollout batches trained on, from the first to the last incarnation."""
    batch_size: int = Field(default=256, ge=1)
    """Rollouts of one update."""
    mini_batch_size: int = Field(default=64, ge=1)
    """Rollouts of one optimizer step."""
    epochs: int = Field(default=1, ge=1, le=100)
    """Passes over a rollout batch. More than one reaches higher rewards sooner, and hacks sooner."""
    max_staleness: int = Field(default=0, ge=0, le=64)
    """Updates that a rollout's weights may lag behind those that train on it. 0 is synchronous PPO; above it,
    max_staleness + 1 batches are under way, and the trainer learns while they are answered."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Adam's rate for the policy, falling linearly to 0 over `updates`."""
    critic_learning_rate: float = Field(default=9e-6, gt=0)
    """Adam's rate for the critic, falling linearly to 0 over `updates`."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    critic_init: Literal["policy", "reward_model"] = "policy"
    """What the critic starts from: the policy's body and a head that says 0, or the reward model that
    `[reward] path` names, body and head (InstructGPT); its tokenizer must be the policy's."""
    kl_coefficient: float = Field(default=0.05, ge=0)
    """β of −β·(log π − log π_ref) at every token; where it starts if it adapts."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimate of the divergence that the reward is charged for; k1 is unbiased."""
    kl_control: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` moves β so that the divergence of a whole answer comes to `kl_target` (Ziegler et al.)."""
    kl_target: float = Field(default=6.0, gt=0)
    """Divergence from the reference that adaptive control aims at, in nats per answer."""
    kl_horizon: float = Field(default=10_000.0, gt=0)
    """Answers over which adaptive control acts: β moves by at most 0.2 · batch_size/horizon in an update."""
    clip_range: float = Field(default=0.2, gt=0, lt=1)
    """Clip of the probability ratio."""
    clip_range_high: float | None = Field(default=None, gt=0)
    """Clip of the ratio above 1, if it shall be wider than below (clip-higher, DAPO); unset: `clip_range`."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of a bad token's loss, in units of its advantage (Ye et al. 2020; 3 is usual); unset: none."""
    max_behaviour_weight: float = Field(default=2.0, ge=1)
    """With stale rollouts: π_proximal/π_behaviour, by which a token counts, is cut here."""
    value_clip_range: float = Field(default=0.2, gt=0)
    """Clip of the value's move, in standard deviations of the returns."""
    gae_gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount γ."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """λ of generalised advantage estimation."""
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Taken from the score of an answer that was cut off."""
    normalise_scores: bool = False
    """Scores count as standard deviations from the mean of all scores so far."""
    score_clip: float = Field(default=10.0, gt=0)
    """Scores are clipped to ± this, after `normalise_scores`."""
    whiten_rewards: bool = False
    """Scale the rewards of a batch, divergence included, to variance 1 without shifting their mean."""
    ptx_coefficient: float = Field(default=0.0, ge=0)
    """γ of PPO-ptx: weight of the cross-entropy on demonstrations in every optimizer step; 0: without."""
    ptx_batch_size: int = Field(default=32, ge=1)
    """Demonstrations of an optimizer step, with `ptx_coefficient`."""
    lora: LoraSection = LoraSection()
    """Adapters on frozen weights, one for the policy and one for the critic, instead of training them all."""

    @model_validator(mode="after")
    def _mini_batches_are_whole(self) -> Self:
        if self.batch_size % self.mini_batch_size:
            raise ValueError(
                f"mini_batch_size {self.mini_batch_size} does not divide batch_size {self.batch_size}"
            )
        return self
