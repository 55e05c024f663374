"""Bodies of OpenAI's chat completions: what is read of a request, and what is refused rather than ignored."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from fairlead.errors import InvalidInput
from fairlead.types import Message, SamplingParams

_ROLES = {"developer": "system"}
"""OpenAI's newer names."""


class _Lenient(BaseModel):
    """What OpenAI adds to its requests is let through, unless it would change the answer."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class TextPart(_Lenient):
    """A part of a message."""

    type: Literal["text"]
    """Texts only."""
    text: str
    """What is said."""


class ChatMessage(_Lenient):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks; `developer` is `system`."""
    content: str | list[TextPart]
    """What is said."""

    def message(self) -> Message:
        """As the policy service takes it."""
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return Message(_ROLES.get(self.role, self.role), text)


class StreamOptions(_Lenient):
    """How a stream ends."""

    include_usage: bool = False
    """Say in the last chunk how many tokens there were."""


class ChatRequest(_Lenient):
    """What is asked of the policy."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "policy",
                    "messages": [{"role": "user", "content": "my lamp arrived broken ."}],
                    "max_completion_tokens": 64,
                }
            ]
        }
    )

    model: str = ""
    """A name of /v1/models, `policy`, or nothing."""
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4_096)]
    """The turns so far; the last is not the assistant's."""
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Tokens of an answer at most."""
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """The same, by its older name."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """Logits are divided by it; 1 if not given."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus mass kept."""
    n: Annotated[int, Field(ge=1, le=4_096)] | None = None
    """Answers wanted; the policy service may allow fewer."""
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    """Texts that end an answer; they are not part of it."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same seed and weights give the same answers; a random one if not given."""
    stream: bool | None = None
    """Send an answer as it is made, as server-sent events."""
    stream_options: StreamOptions | None = None
    """How a stream ends."""
    frequency_penalty: float | None = None
    """Only 0."""
    presence_penalty: float | None = None
    """Only 0."""
    logit_bias: dict[str, float] | None = None
    """Only empty."""
    logprobs: bool | None = None
    """Only false."""
    tools: list[dict[str, Any]] | None = None
    """Only empty."""
    response_format: dict[str, Any] | None = None
    """Only `{"type": "text"}`."""

    @field_validator("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "tools")
    @classmethod
    def _not_offered(cls, value: object) -> object:
        if value:
            raise ValueError("nothing: it would change the answer, and the policy service does not offer it")
        return value

    @field_validator("response_format")
    @classmethod
    def _text_alone(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and value.get("type") != "text":
            raise ValueError('{"type": "text"}')
        return value

    def turns(self) -> tuple[Message, ...]:
        """As the policy service takes them.

        Raises:
            InvalidInput: the last turn is the assistant's.
        """
        if self.messages[-1].role == "assistant":
            raise InvalidInput(
                "messages",
                index=len(self.messages) - 1,
                got="the assistant's turn",
                allowed="a last turn to answer",
            )
        return tuple(message.message() for message in self.messages)

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        given = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return tuple(text for text in given if text)

    def sampling(self, *, default_tokens: int) -> SamplingParams:
        """How to draw; `default_tokens` where the caller does not say how many."""
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            max_new_tokens=self.max_completion_tokens or self.max_tokens or default_tokens,
            stop_strings=self.stops,
            seed=random_seed() if self.seed is None else self.seed,
        )


def random_seed() -> int:
    """For who gives none."""
    return secrets.randbits(62)


class AnswerMessage(BaseModel):
    """What the policy says."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatUsage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(BaseModel):
    """OpenAI's chat completion."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    """Version of the weights that made the first token."""
    choices: list[Choice]
    usage: ChatUsage
