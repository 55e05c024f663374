"""The data that the parts of the project exchange: frozen dataclasses without behaviour, a file for each
area.

Token ids and log-probs are tuples: immutable, hashable, cheap to pass between threads. `fairlead/codec/`
converts them to messages; nothing here knows protobuf, gRPC, Redis or torch.
"""

from __future__ import annotations

from fairlead.types.generation import (
    Completion,
    FinishReason,
    Generated,
    GeneratedPiece,
    GenerationRequest,
    Message,
    SamplingParams,
)
from fairlead.types.infos import ModelInfo, PolicyInfo, ReferenceInfo, RewardInfo, ServedReward
from fairlead.types.rollouts import DeadLetter, Outcome, PromptTask, Rollout, TaskResult
from fairlead.types.scoring import Priority, ScoreItem, Scores, TextPair, TokenPair, WholeText
from fairlead.types.weights import VersionSpan, WeightVersion

__all__ = [
    "Completion",
    "DeadLetter",
    "FinishReason",
    "Generated",
    "GeneratedPiece",
    "GenerationRequest",
    "Message",
    "ModelInfo",
    "Outcome",
    "PolicyInfo",
    "Priority",
    "PromptTask",
    "ReferenceInfo",
    "RewardInfo",
    "Rollout",
    "SamplingParams",
    "ScoreItem",
    "Scores",
    "ServedReward",
    "TaskResult",
    "TextPair",
    "TokenPair",
    "VersionSpan",
    "WeightVersion",
    "WholeText",
]
