"""`[reward_model]`: training the reward model on comparisons."""

from __future__ import annotations

from pydantic import Field

from fairlead.config.compute import TrainingSection


class RewardModelSection(TrainingSection):
    """−log σ(r_better − r_worse), averaged over the pairs of a ranking; starts from the SFT model."""

    path: str = ""
    """Model it starts from. Empty: the SFT model of the run."""
    ensemble_size: int = Field(default=1, ge=1, le=64)
    """Models that are trained, with other draws of head and order each, and served as one."""
    epochs: int = Field(default=1, ge=1, le=1_000)
    """Passes over the comparisons."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts of one optimizer step, with all their comparisons."""
    learning_rate: float = Field(default=9e-6, gt=0)
    """Peak rate of AdamW."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises linearly; then it falls linearly to 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_sequence_tokens: int = Field(default=512, ge=2)
    """Longer pairs are cut from the left of the prompt, and counted."""
