"""Requests to the reward model and its scores."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.types.generation import Message


@dataclass(frozen=True, slots=True)
class TextPair:
    """A prompt and response as text, tokenized by the reward service."""

    prompt: str
    """The prompt."""
    response: str
    """The response."""
    messages: tuple[Message, ...] = ()
    """Messages of a conversation, used instead of `prompt` if not empty."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A prompt and response as token ids."""

    prompt_token_ids: tuple[int, ...]
    """Ids of the prompt."""
    response_token_ids: tuple[int, ...]
    """Ids of the response, at least one."""
    append_end: bool = False
    """End a response that has no end, such as one cut off at `max_new_tokens`, as the reward model was
    trained to read it. Otherwise it is scored at its last id."""


@dataclass(frozen=True, slots=True)
class WholeText:
    """Prompt and response in one text, with special tokens written out if there are any."""

    text: str
    """The text."""


ScoreItem = TextPair | TokenPair | WholeText


class Priority(enum.Enum):
    """Order of requests while a model is busy."""

    ONLINE = "online"
    """A caller waits for the response; served first."""
    BULK = "bulk"
    """Nobody waits, such as when a file is scored; served after online requests."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one request."""

    scores: tuple[float, ...]
    """One for each item, in order."""
    model_version: str
    """Version of the reward model."""
    num_tokens: tuple[int, ...]
    """Number of tokens of each item."""
    queue_seconds: float = 0.0
    """Time in the queue of the model."""
    compute_seconds: float = 0.0
    """Time in the model, including the other items of the same batches."""
    calibration_temperature: float = 0.0
    """Scores divided by it are calibrated: σ(difference) is the probability that a labeler prefers one
    response of a prompt to another (temperature scaling, Guo et al. 2017). 0 if it was not measured."""
    terms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of a combined reward: the scores of each term, by its name."""
