"""What the reward model is asked, and what it answers."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fairlead.types.conversation import Message


@dataclass(frozen=True, slots=True)
class TextPair:
    """A prompt and response as text, tokenized by the reward service."""

    prompt: str
    """The prompt."""
    response: str
    """The response."""
    messages: tuple[Message, ...] = ()
    """The turns that the response answers; if there are any, they are the prompt, and `prompt` is unread."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A prompt and response as token ids."""

    prompt_token_ids: tuple[int, ...]
    """Ids of the prompt."""
    response_token_ids: tuple[int, ...]
    """Ids of the response, at least one."""


@dataclass(frozen=True, slots=True)
class WholeText:
    """Prompt and response in one text, as it was shown to a model: special tokens written out, or none."""

    text: str
    """The text."""


ScoreItem = TextPair | TokenPair | WholeText


class Priority(enum.Enum):
    """Who is served first when a model is busy."""

    ONLINE = "online"
    """Somebody waits for the answer."""
    BULK = "bulk"
    """Nobody does: data to be filtered, files to be scored."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one request."""

    scores: tuple[float, ...]
    """One for each item, in order."""
    model_version: str
    """Version of the model that made them."""
    num_tokens: tuple[int, ...]
    """Tokens read for each item."""
    queue_seconds: float = 0.0
    """Time that the request waited for the model."""
    compute_seconds: float = 0.0
    """Time that the model took, with what else was in its batches."""
    calibration_temperature: float = 0.0
    """Scores divided by it are calibrated: σ(difference) is the probability that a labeler prefers one
    response of a prompt to another (temperature scaling, Guo et al. 2017). 0 if nobody has measured it."""
