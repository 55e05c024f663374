"""Bodies of our own dialect: what /v1/rewards, :rank and :best-of-n take and give. Also the OpenAPI page."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from fairlead.types import Message, ScoreItem, TextPair
from services.gateway.failures import UNION_TAGS


def _examples(*examples: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {"examples": list(examples)}


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


_PROMPT = "my lamp arrived broken ."
_RESPONSES = ["sorry about the lamp . we send a new one .", "that is your problem ."]


class RewardsRequest(Body):
    """Responses to score: `items`, each with its own prompt, or one `prompt` and its `responses`."""

    model_config = ConfigDict(
        json_schema_extra=_examples(
            {"prompt": _PROMPT, "responses": _RESPONSES},
            {"items": [{"prompt": _PROMPT, "response": _RESPONSES[0]}], "calibrated": False},
            {
                "items": [
                    {
                        "messages": [
                            {"role": "user", "content": _PROMPT},
                            {"role": "assistant", "content": _RESPONSES[0]},
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
        json_schema_extra=_examples(
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


class RankRequest(Body):
    """Responses to one prompt, to be put in order."""

    model_config = ConfigDict(json_schema_extra=_examples({"prompt": _PROMPT, "responses": _RESPONSES}))

    prompt: Prompt = ""
    """What the responses answer."""
    responses: Annotated[list[str], Field(min_length=1)]
    """The candidates."""
    calibrated: bool | None = None
    """As for /v1/rewards; null: if the model can be."""

    @model_validator(mode="after")
    def _turns_end_before_an_answer(self) -> Self:
        self.score_items()
        return self

    def score_items(self) -> list[ScoreItem]:
        """As the reward service takes them."""
        return [pair(self.prompt, response) for response in self.responses]


class Ranked(Answer):
    """One response in its place."""

    index: int
    """Of the response in the request, or in the order in which it was generated."""
    reward: float
    """Its score."""
    probability: float | None
    """That a labeler finds it the best of all (Plackett–Luce); null if scores are not calibrated."""
    num_tokens: int
    """Tokens that the model read, prompt and response together."""
    response: str
    """The text."""


class RankResponse(Scored):
    """Responses, best first; equal ones in the order of the request."""

    ranking: list[Ranked]
    """All of them."""


class Sampling(Body):
    """How candidates are generated."""

    n: int = Field(default=4, ge=1, le=4_096)
    """Candidates; the policy service may allow fewer."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """Logits are divided by it."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass kept."""
    top_k: int = Field(default=0, ge=0, le=2**31 - 1)
    """Most likely tokens kept; 0 keeps all."""
    max_new_tokens: int = Field(default=256, ge=1, le=2**31 - 1)
    """Tokens of a candidate at most."""
    stop: Annotated[list[str], Field(max_length=16)] = []
    """Texts that end a candidate."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """The same seed and weights give the same candidates; null: a random one."""


class BestOfNRequest(Body):
    """A prompt, and candidates or how to generate them on the policy service."""

    model_config = ConfigDict(
        json_schema_extra=_examples(
            {"prompt": _PROMPT, "responses": _RESPONSES},
            {"prompt": _PROMPT, "sampling": {"n": 4, "temperature": 1.0, "max_new_tokens": 64}},
        )
    )

    prompt: Prompt = ""
    """What is answered."""
    responses: Annotated[list[str], Field(min_length=1)] | None = None
    """Candidates; null: they are generated."""
    sampling: Sampling | None = None
    """How to generate; null: as the defaults say."""
    calibrated: bool | None = None
    """As for /v1/rewards; null: if the model can be."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.responses is not None and self.sampling is not None:
            raise ValueError("`responses`, or `sampling` to generate them")
        if self.responses is None and not self.prompt:
            raise ValueError("a `prompt` to answer, or `responses`")
        pair(self.prompt, "")
        return self


class BestOfNResponse(Scored):
    """The best response, and all of them in order."""

    best: Ranked
    """The first of `ranking`."""
    ranking: list[Ranked]
    """All candidates, best first."""
    generated: bool
    """Whether the policy service made them."""
