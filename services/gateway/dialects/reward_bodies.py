"""Bodies of our own dialect: what /v1/rewards takes and gives, and what its neighbours share with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from fairlead.types import Message, ScoreItem, TextPair
from services.gateway.failures import UNION_TAGS


def examples(*bodies: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """For the OpenAPI page."""
    return {"examples": list(bodies)}


class Body(BaseModel):
    """What callers send: unknown keys are refused, so that a misspelt one is not ignored."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, strict=True
    )


class Answer(BaseModel):
    """What they get."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Turn(Body):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """What is said."""

    def message(self) -> Message:
        """As the services take it."""
        return Message(self.role, self.content)


def _tag(value: object) -> str:
    return UNION_TAGS[1] if isinstance(value, (list, tuple)) else UNION_TAGS[0]


Turns = Annotated[list[Turn], Field(min_length=1, max_length=4_096)]
Prompt = Annotated[
    Annotated[str, Tag(UNION_TAGS[0])] | Annotated[Turns, Tag(UNION_TAGS[1])], Discriminator(_tag)
]
"""Plain text, or the turns that the response answers, rendered by the model's chat template."""


def pair(prompt: str | list[Turn], response: str) -> TextPair:
    """Prompt and response as the reward service takes them.

    Raises:
        ValueError: the turns end with the assistant.
    """
    if isinstance(prompt, str):
        return TextPair(prompt, response)
    if prompt[-1].role == "assistant":
        raise ValueError("turns before an answer: the last is not the assistant's")
    return TextPair("", response, tuple(turn.message() for turn in prompt))


class Item(Body):
    """One response to score: `prompt` and `response`, or `messages` that end with the assistant's answer."""

    prompt: Prompt = ""
    """What is answered: text or turns."""
    response: str | None = None
    """The answer."""
    messages: Turns | None = None
    """Prompt and answer in one, the answer last."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        self.item()
        return self

    def item(self) -> ScoreItem:
        """As the reward service takes it.

        Raises:
            ValueError: it is neither form, or both.
        """
        if self.messages is None:
            if self.response is None:
                raise ValueError("`response`, or `messages` that end with it")
            return pair(self.prompt, self.response)
        if self.response is not None or self.prompt:
            raise ValueError("`messages` alone, or `prompt` and `response`")
        *before, last = self.messages
        if last.role != "assistant" or not before:
            raise ValueError("`messages` that end with the assistant's answer to a turn")
        return pair(before, last.content)


PROMPT = "my lamp arrived broken ."
RESPONSES = ["sorry about the lamp . we send a new one .", "that is your problem ."]


class RewardsRequest(Body):
    """Responses to score: `items`, each with its own prompt, or one `prompt` and its `responses`."""

    model_config = ConfigDict(
        json_schema_extra=examples(
            {"prompt": PROMPT, "responses": RESPONSES},
            {"items": [{"prompt": PROMPT, "response": RESPONSES[0]}], "calibrated": False},
            {
                "items": [
                    {
                        "messages": [
                            {"role": "user", "content": PROMPT},
                            {"role": "assistant", "content": RESPONSES[0]},
                        ]
                    }
                ]
            },
        )
    )

    items: Annotated[list[Item], Field(min_length=1)] | None = None
    """Responses with their own prompts."""
    prompt: Prompt = ""
    """The prompt of all `responses`."""
    responses: Annotated[list[str], Field(min_length=1)] | None = None
    """Answers to `prompt`; the service runs the prompt once for all of them."""
    calibrated: bool = False
    """Divide scores by the model's calibration temperature: σ(difference) is then the probability that a
    labeler prefers one response of a prompt to another. Refused if the model has none."""
    priority: Literal["online", "bulk"] = "online"
    """`bulk` lets others go first when the model is busy."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.items is None) == (self.responses is None):
            raise ValueError("either `items`, or `prompt` and `responses`")
        if self.items is not None and self.prompt:
            raise ValueError("`prompt` beside `responses`, not beside `items`, which have their own")
        self.score_items()
        return self

    def score_items(self) -> list[ScoreItem]:
        """As the reward service takes them."""
        if self.items is not None:
            return [item.item() for item in self.items]
        return [pair(self.prompt, response) for response in self.responses or ()]


class Timing(Answer):
    """Where the time went."""

    total_seconds: float
    """In the gateway, from the headers of the request."""
    queue_seconds: float
    """Waiting for the model."""
    compute_seconds: float
    """In the model, with what else was in its batches."""


class Reward(Answer):
    """One score."""

    index: int
    """Of the item or response in the request."""
    reward: float
    """The score: higher is better; compare it only within one prompt and one model version."""
    num_tokens: int
    """Tokens that the model read, prompt and response together."""


class Scored(Answer):
    """What every answer says."""

    request_id: str
    """The request's `X-Request-Id`, or a random one."""
    model: str
    """The reward model."""
    model_version: str
    """Version of it that made these scores: the SHA-256 of its weights, shortened."""
    calibrated: bool
    """Whether scores were divided by the calibration temperature."""
    calibration_temperature: float | None
    """The model's; null if nobody has measured it."""
    total_tokens: int
    """Tokens that were read."""
    timing: Timing
    """Where the time went."""


class RewardsResponse(Scored):
    """Scores, in the order of the request."""

    model_config = ConfigDict(
        json_schema_extra=examples(
            {
                "request_id": "5f0c1a9b27de4410",
                "model": "runs/quickstart-round-1/reward_model",
                "model_version": "1f3a9c0d2b47",
                "calibrated": False,
                "calibration_temperature": 1.7,
                "total_tokens": 33,
                "timing": {"total_seconds": 0.0062, "queue_seconds": 0.0, "compute_seconds": 0.0041},
                "rewards": [
                    {"index": 0, "reward": 1.83, "num_tokens": 18},
                    {"index": 1, "reward": -2.11, "num_tokens": 15},
                ],
            }
        )
    )

    rewards: list[Reward]
    """One for each item or response."""
