"""`[sft.lora]` and `[ppo.lora]`: training a low-rank adapter instead of all weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.config.section import Section


class LoraSection(Section):
    """Low-rank adaptation (Hu et al. 2021): the base stays as it is, W·x becomes W·x + alpha/rank · B·A·x."""

    rank: int = Field(default=0, ge=0, le=1_024)
    """Rows of A and columns of B, r; 0 trains all weights instead. 8 to 64 are usual, with a learning rate
    ten times that of training all weights, or more."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's share is multiplied by alpha/rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear layers that get an adapter, such as `["q_proj", "v_proj"]`; `all-linear` is every
    one but the output layer."""
    merge: bool = False
    """Leave the trained model with the adapter added to its weights, a folder that needs no base beside it,
    instead of the adapter alone."""


class DropoutLoraSection(LoraSection):
    """As `[ppo.lora]`, with dropout if wanted; PPO has none, as it compares log-probs."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that are left out while it learns; the base has no dropout."""
