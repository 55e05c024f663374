"""Requests to the policy and its completions."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fairlead.types.weights import VersionSpan, WeightVersion


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    """Text of the message."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a completion is sampled."""

    temperature: float = 1.0
    """Divisor of the logits; 0 for greedy decoding."""
    top_p: float = 1.0
    """Probability mass kept (nucleus sampling), in (0, 1]."""
    top_k: int = 0
    """Number of most likely tokens kept; 0 keeps all."""
    max_new_tokens: int = 64
    """Largest number of tokens generated."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end a completion and are part of it; the model's EOS ids always do."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a completion at the token that completes one of them."""
    seed: int = 0
    """Random seed."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One Generate call, checked and tokenized."""

    request_id: str
    """Id of the request in logs."""
    prompt_token_ids: tuple[int, ...]
    """Token ids of the prompt, at least one."""
    sampling: SamplingParams
    """How to sample."""
    num_samples: int = 1
    """Number of completions."""
    min_version: WeightVersion | None = None
    """Oldest weights allowed."""
    exclusive: bool = False
    """Whether the replica computes nothing else meanwhile."""


class FinishReason(enum.Enum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of a prompt."""

    token_ids: tuple[int, ...]
    """Sampled token ids, including the stop id."""
    logprobs: tuple[float, ...]
    """log π_behaviour of each token under the distribution it was sampled from."""
    finish_reason: FinishReason | None
    """Why it ended; None only in pieces of a stream."""
    version_spans: tuple[VersionSpan, ...]
    """The weights of every token, in order."""
    text: str = ""
    """Decoded text without special tokens."""
    mixed_cache: bool = False
    """Whether newer weights attended to keys and values of older ones."""


@dataclass(frozen=True, slots=True)
class Generated:
    """The completions of one prompt."""

    completions: tuple[Completion, ...]
    """One for each sample, in order."""
    num_prompt_tokens: int
    """Number of tokens of the prompt."""


@dataclass(frozen=True, slots=True)
class GeneratedPiece:
    """New tokens of one completion, during its generation."""

    index: int
    """Index of the sample."""
    delta: Completion
    """The next tokens; the last piece of a sample has a finish reason."""
    num_prompt_tokens: int
    """Number of tokens of the prompt."""
