"""What the model services say they serve."""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.types.weights import WeightVersion


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model service serves."""

    model_id: str
    """Hub id or path as configured."""
    tokenizer_fingerprint: str
    """SHA-256 of the tokenizer's definition."""
    vocabulary_size: int
    """Rows of the embedding; ids are below it."""
    max_sequence_tokens: int
    """Longest sequence, prompt and response together."""
    dtype: str
    """Computation type, such as `float32`."""


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """What a policy replica serves."""

    model: ModelInfo
    """The model."""
    weight_version: WeightVersion
    """The weights in use."""
    max_slots: int
    """Sequences decoded at the same time at most."""
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
    """Scores divided by it are calibrated; 0 if nobody has measured it."""
    canary_model_version: str = ""
    """Version of the model that scores a share of the traffic on trial; empty if there is none."""
    canary_share: float = 0.0
    """That share, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class ServedReward:
    """One of the models that a reward replica scores with."""

    info: RewardInfo
    """What it is."""
    share: float
    """Share of the traffic that it scores, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class ReferenceInfo:
    """What a reference replica serves."""

    model: ModelInfo
    """The model."""
