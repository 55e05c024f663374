"""`[sft]`: supervised fine-tuning on demonstrations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.config.compute import TrainingSection
from fairlead.config.lora import DropoutLoraSection


class SftSection(TrainingSection):
    """Cross-entropy: on responses and assistant turns only, on every token of plain text."""

    epochs: int = Field(default=2, ge=1, le=1_000)
    """Passes over the demonstrations."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences of one optimizer step."""
    batching: Literal["length", "packing"] = "length"
    """How the sequences of a step are laid out: `length` puts those of like length together and pads;
    `packing` puts several behind one another in rows of `max_sequence_tokens`, their attention kept apart.
    The loss is the same."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak rate of AdamW."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises linearly; then it falls linearly to 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_sequence_tokens: int = Field(default=512, ge=2)
    """Longer demonstrations are cut, and counted; longer plain text goes on in another sequence."""
    lora: DropoutLoraSection = DropoutLoraSection()
    """An adapter on frozen weights instead of training all of them."""
