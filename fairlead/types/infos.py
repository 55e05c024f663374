"""Descriptions of served models, as the model services return them."""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.types.weights import WeightVersion


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model."""

    model_id: str
    """Hub id or path, as configured."""
    tokenizer_fingerprint: str
    """SHA-256 of the tokenizer's definition."""
    vocabulary_size: int
    """Rows of the embedding; every token id is smaller."""
    max_sequence_tokens: int
    """Longest sequence, prompt and response together."""
    dtype: str
    """Type of the computation, such as `float32`."""


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """What a policy replica serves, and its limits."""

    model: ModelInfo
    """The model."""
    weight_version: WeightVersion
    """Version of the weights in use."""
    max_slots: int
    """Largest number of sequences decoded at the same time."""
    max_samples: int
    """Largest number of samples of one request."""


@dataclass(frozen=True, slots=True)
class RewardInfo:
    """What a reward replica serves."""

    model: ModelInfo
    """The model."""
    model_version: str
    """SHA-256 of its weights, shortened."""
    calibration_temperature: float = 0.0
    """Scores divided by it are calibrated; 0 if it was not measured."""
    canary_model_version: str = ""
    """Version of the canary, which scores a share of the requests; empty if there is none."""
    canary_share: float = 0.0
    """The canary's share of the requests, from 0 to 1."""
    canary_model: ModelInfo | None = None
    """The canary's model; None if there is no canary."""
    canary_calibration_temperature: float = 0.0
    """As `calibration_temperature`, of the canary."""

    @property
    def served(self) -> tuple[RewardInfo, ...]:
        """The current model, then the canary if there is one, each described as if it were the only one."""
        current = RewardInfo(self.model, self.model_version, self.calibration_temperature)
        if self.canary_model is None:
            return (current,)
        temperature = self.canary_calibration_temperature
        return (current, RewardInfo(self.canary_model, self.canary_model_version, temperature))


@dataclass(frozen=True, slots=True)
class ServedReward:
    """One of the models of a reward replica."""

    info: RewardInfo
    """The model."""
    share: float
    """Share of the requests that it scores, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class ReferenceInfo:
    """What a reference replica serves."""

    model: ModelInfo
    """The model."""
