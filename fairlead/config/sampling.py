"""How answers are sampled: those that PPO trains on, and those of evaluations."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from fairlead.config.base import Section
from fairlead.types import SamplingParams


class SamplingSection(Section):
    """Sampling of the rollouts that PPO trains on."""

    temperature: float = Field(default=1.0, gt=0, le=100)
    """Sampling temperature. The logits of the policy, the reference and the trainer are divided by it."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Probability mass that nucleus sampling keeps; 1 keeps all tokens."""
    top_k: int = Field(default=0, ge=0)
    """Number of most likely tokens to sample from; 0 means all."""
    max_new_tokens: int = Field(default=64, ge=1, le=131_072)
    """Maximum length of an answer, in tokens."""
    stop_strings: tuple[str, ...] = ()
    """Strings that end an answer."""
    allow_truncated_distribution: bool = False
    """Allow training with `top_p` < 1 or `top_k` > 0. The behaviour log-probs are then those of the
    renormalised distribution, and the importance ratio is biased."""

    @model_validator(mode="after")
    def _check_truncation(self) -> Self:
        if (self.top_p < 1 or self.top_k > 0) and not self.allow_truncated_distribution:
            raise ValueError(
                "top_p < 1 or top_k > 0 biases the importance ratio; "
                "set sampling.allow_truncated_distribution = true to train with it anyway"
            )
        return self

    def params(self, *, seed: int) -> SamplingParams:
        """Return the sampling parameters of one task."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=self.max_new_tokens,
            stop_strings=self.stop_strings,
            seed=seed,
        )


class EvaluationSection(Section):
    """Evaluation on held-out prompts before, during and after training."""

    every_updates: int = Field(default=0, ge=0)
    """Updates between evaluations during PPO. The last update is always evaluated, and the checkpoint with
    the highest mean score − β·KL − `missing_eos_penalty`·(share of answers without EOS) is saved as
    `policy_best/`, unless fresh labels then contradict the reward model (`guard.overconfidence_stop_above`).
    0 disables evaluation."""
    reward_model: str = ""
    """Folder or Hugging Face id of a second reward model, whose scores choose `policy_best/` instead of those
    that PPO maximises: trained on other rankings, or at least from another seed. The trainer loads it, on the
    device of `[ppo]`. Its scores must be in the same unit, as those of two models trained on comparisons are
    (log-odds)."""
    max_seconds: float = Field(default=120.0, gt=0, le=86_400)
    """Maximum duration of an evaluation during PPO. A longer one is abandoned, and training continues."""
    num_prompts: int = Field(default=256, ge=1)
    """Number of answers to compare, spread over the held-out prompts."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """Sampling temperature; 0 is greedy."""
    num_report_samples: int = Field(default=10, ge=0, le=1_000)
    """Number of answers that the report shows side by side."""
