"""`[sampling]`: how the policy answers while it is trained."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from fairlead.config.section import Section
from fairlead.types import SamplingParams


class SamplingSection(Section):
    """Sampling of training rollouts."""

    temperature: float = Field(default=1.0, gt=0, le=100)
    """Logits are divided by it, in sampling, reference and training alike. Training needs more than 0."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass kept."""
    top_k: int = Field(default=0, ge=0)
    """Most likely tokens kept; 0 keeps all."""
    max_new_tokens: int = Field(default=64, ge=1, le=131_072)
    """Tokens of an answer at most."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end an answer."""
    allow_truncated_distribution: bool = False
    """Train although top_p or top_k cut the distribution: behaviour log-probs are then those of the
    renormalised rest, and the importance ratio is biased."""

    @model_validator(mode="after")
    def _truncation_is_asked_for(self) -> Self:
        if (self.top_p < 1 or self.top_k > 0) and not self.allow_truncated_distribution:
            raise ValueError(
                "top_p < 1 or top_k > 0 biases the importance ratio; "
                "set sampling.allow_truncated_distribution = true to train with it all the same"
            )
        return self

    def params(self, *, seed: int) -> SamplingParams:
        """The parameters of one task."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=self.max_new_tokens,
            stop_strings=self.stop_strings,
            seed=seed,
        )
