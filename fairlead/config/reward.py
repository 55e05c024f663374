"""`[reward]`: the service that scores."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.config.compute import BatchingSection, ModelServiceSection


class RewardSection(ModelServiceSection):
    """Scoring by the reward model."""

    model_name: str = Field(default="reward", min_length=1, max_length=128)
    """The model's name in the Open Inference Protocol."""
    batching: BatchingSection = BatchingSection()
    """How requests are packed."""
    append_eos: bool = True
    """Put the tokenizer's EOS behind a response that comes as text; ids are scored as they come."""
    chat_template: Literal["auto", "always", "never"] = "auto"
    """Whether a prompt that comes as plain text is shown to the model as a user's turn in its chat template.
    `auto`: where it has one and was not trained by Fairlead. Conversations always go through the template."""
    ensemble: Literal["mean", "min", "mean_minus_std"] = "mean"
    """What becomes of the scores of an ensemble's members; a single model is served as it is."""
    ensemble_std_weight: float = Field(default=1.0, ge=0)
    """λ of `mean_minus_std`: mean − λ · standard deviation among the members."""
    stream_max_requests: int = Field(default=256, ge=1, le=65_536)
    """Requests of one stream that are in work at a time, at most `max_message_bytes` together; until answers
    are taken no more are read."""
