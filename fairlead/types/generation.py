"""What the policy is asked, and what it answers."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fairlead.types.sampling import SamplingParams
from fairlead.types.weights import VersionSpan, WeightVersion


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One call of Generate, checked and tokenized."""

    request_id: str
    """Names the request in logs."""
    prompt_token_ids: tuple[int, ...]
    """Ids of the prompt, at least one."""
    sampling: SamplingParams
    """How to sample."""
    num_samples: int = 1
    """Completions wanted."""
    min_version: WeightVersion | None = None
    """Weights at least this new must answer."""
    exclusive: bool = False
    """Nothing else is computed while this is."""


class FinishReason(enum.Enum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy answered."""

    token_ids: tuple[int, ...]
    """Sampled ids, the stop id included."""
    logprobs: tuple[float, ...]
    """log π_behaviour of each id under the distribution that was sampled."""
    finish_reason: FinishReason | None
    """Why it ended; None only in the deltas of a stream."""
    version_spans: tuple[VersionSpan, ...]
    """Weights of every token, in order."""
    text: str = ""
    """Decoded, special tokens left out."""
    mixed_cache: bool = False
    """True if newer weights attended to keys and values of older ones."""


@dataclass(frozen=True, slots=True)
class Generated:
    """The answers to one prompt."""

    completions: tuple[Completion, ...]
    """One for each sample, in order."""
    num_prompt_tokens: int
    """Tokens of the prompt."""


@dataclass(frozen=True, slots=True)
class GeneratedPiece:
    """What is new of one answer while it is made."""

    index: int
    """Of the sample."""
    delta: Completion
    """Its next tokens; the last piece of a sample has a finish reason."""
    num_prompt_tokens: int
    """Tokens of the prompt."""
