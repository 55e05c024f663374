"""Requests and responses of Fairlead's own dialect, and the fields that its callers know."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from fairlead.types import Message, SamplingParams, ScoreItem, TextPair
from services.gateway.backend import PromptInput
from services.gateway.dialects.openai_chat import stop_field
from services.runtime.caller_fields import Places

_PROMPT = "my lamp arrived broken ."
_RESPONSES = ["sorry about the lamp . we send a new one .", "that is your problem ."]


def _examples(*bodies: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return the part of a model's JSON schema that shows examples."""
    return {"examples": list(bodies)}


class RequestBody(BaseModel):
    """A request. Unknown keys are refused, so that a misspelt key is not ignored."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, strict=True
    )


class ResponseBody(BaseModel):
    """A response, or a part of one."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Turn(RequestBody):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Author of the turn."""
    content: str
    """Text of the turn."""

    def message(self) -> Message:
        """Convert it to the services' type."""
        return Message(self.role, self.content)


def _prompt_tag(value: object) -> str:
    return "turns" if isinstance(value, (list, tuple)) else "text"


def _awaits_response(turns: list[Turn]) -> list[Turn]:
    if turns[-1].role == "assistant":
        raise ValueError("a prompt whose last turn is not the assistant's")
    return turns


def _ends_with_response(turns: list[Turn]) -> list[Turn]:
    if len(turns) < 2 or turns[-1].role != "assistant" or turns[-2].role == "assistant":
        raise ValueError(
            "at least two turns, of which the last, and not the one before, is the assistant's response"
        )
    return turns


MAX_TURNS = 4_096

Turns = Annotated[list[Turn], Field(min_length=1, max_length=MAX_TURNS, fail_fast=True)]
Prompt = Annotated[
    Annotated[str, Tag("text")] | Annotated[Turns, AfterValidator(_awaits_response), Tag("turns")],
    Discriminator(_prompt_tag),
]
"""Plain text, or the turns before the response, which the model's chat template renders."""
_PROMPT_FIELDS = {"items.text.prompt": "prompt", "items.text.messages": "prompt"}
"""Fields of the reward service for a prompt."""
RESPONSES_FIELDS = {**_PROMPT_FIELDS, "items": "responses[]", "request": "responses"}
"""Fields of the reward service for a prompt and its responses."""


def _prompt_input(prompt: str | list[Turn]) -> PromptInput:
    return prompt if isinstance(prompt, str) else tuple(turn.message() for turn in prompt)


def _text_pairs(prompt: str | list[Turn], responses: Sequence[str]) -> list[ScoreItem]:
    """Return a prompt with each response as the reward service expects them; they share the prompt."""
    given = _prompt_input(prompt)
    if isinstance(given, str):
        return [TextPair(given, response) for response in responses]
    return [TextPair("", response, given) for response in responses]


class Item(RequestBody):
    """One response to score: either `prompt` and `response`, or `messages` that end with the response."""

    prompt: Prompt = ""
    """The prompt, as text or as turns; required without `messages`."""
    response: str | None = None
    """The response to score."""
    messages: Annotated[Turns, AfterValidator(_ends_with_response)] | None = None
    """The whole conversation; the last turn, the assistant's, is the response to score."""

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        if self.messages is None and self.response is None:
            raise ValueError("`response`, or `messages` that end with the assistant's response")
        if self.messages is not None and (self.response is not None or self.prompt):
            raise ValueError("either `messages`, or `prompt` and `response`")
        if self.messages is None and "prompt" not in self.model_fields_set:
            raise ValueError('`prompt` next to `response`; "" if there is none')
        return self

    def item(self) -> ScoreItem:
        """Convert it to the services' type."""
        if self.messages is None:
            return _text_pairs(self.prompt, [self.response or ""])[0]
        return _text_pairs(self.messages[:-1], [self.messages[-1].content])[0]

    def service_fields(self) -> Places:
        """Return the fields of the reward service as this item names them."""
        if self.messages is not None:
            return {"items.text": "items[].messages", "items": "items[]"}
        return {
            "items.text.response": "items[].response",
            "items": "items[]",
            **{field: f"items[].{place}" for field, place in _PROMPT_FIELDS.items()},
        }


class RewardsRequest(RequestBody):
    """Responses to score: either `items`, each with its own prompt, or one `prompt` and its `responses`."""

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

    items: Annotated[list[Item], Field(min_length=1, fail_fast=True)] | None = None
    """Responses, each with its own prompt."""
    prompt: Prompt = ""
    """The prompt of all `responses`; required with them."""
    responses: Annotated[list[str], Field(min_length=1, fail_fast=True)] | None = None
    """Responses to `prompt`. The reward model reads the prompt once for all of them."""
    calibrated: bool = False
    """Whether to divide the scores by the model's calibration temperature. The probability that a labeler
    prefers one response to another is then σ(difference of their scores). Refused if the model has none."""
    priority: Literal["online", "bulk"] = "online"
    """`bulk` requests wait for `online` ones while the model is busy."""

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        if (self.items is None) == (self.responses is None):
            raise ValueError("either `items`, or `prompt` and `responses`")
        if self.items is not None and self.prompt:
            raise ValueError("no `prompt` next to `items`: each item has its own")
        if self.responses is not None and "prompt" not in self.model_fields_set:
            raise ValueError('`prompt` next to `responses`; "" if there is none')
        return self

    def score_items(self) -> list[ScoreItem]:
        """Convert the responses to the services' type."""
        if self.items is not None:
            return [item.item() for item in self.items]
        return _text_pairs(self.prompt, self.responses or ())

    def service_fields(self, index: int | None) -> Places:
        """Return the fields of the reward service as this request names them, for the index of an error."""
        if self.items is None:
            return RESPONSES_FIELDS
        if index is None or index >= len(self.items):
            return {"items": "items", "request": "items"}
        return self.items[index].service_fields()


class Timing(ResponseBody):
    """Durations."""

    total_seconds: float
    """Time in the gateway, from receiving the request's headers."""
    queue_seconds: float
    """Time in the reward service's queue."""
    compute_seconds: float
    """Time in the model, for the whole batches that contained the request."""


class RewardEntry(ResponseBody):
    """One score."""

    index: int
    """Position of the item or response in the request."""
    reward: float
    """The score. Higher is better; comparable only for one prompt and one model version."""
    num_tokens: int
    """Number of tokens that the model read, prompt and response together."""


class ScoredResponse(ResponseBody):
    """What every response contains."""

    request_id: str
    """The `X-Request-Id` of the request, or a random id."""
    model: str
    """Id of the reward model."""
    model_version: str
    """Version of the model that computed the scores: the SHA-256 of its weights, shortened."""
    calibrated: bool
    """Whether the scores were divided by the calibration temperature."""
    calibration_temperature: float | None
    """The model's calibration temperature; null if it was not measured."""
    total_tokens: int
    """Number of tokens that the model read."""
    timing: Timing
    """How long the request took, and where."""


class RewardsResponse(ScoredResponse):
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

    rewards: list[RewardEntry]
    """One entry for each item or response."""


class RankRequest(RequestBody):
    """Responses to one prompt, to be ranked."""

    model_config = ConfigDict(json_schema_extra=_examples({"prompt": _PROMPT, "responses": _RESPONSES}))

    prompt: Prompt
    """The prompt of all responses."""
    responses: Annotated[list[str], Field(min_length=1, fail_fast=True)]
    """The candidates."""
    calibrated: bool | None = None
    """As for /v1/rewards; null: calibrate if the model has a calibration temperature."""

    def score_items(self) -> list[ScoreItem]:
        """Convert the responses to the services' type."""
        return _text_pairs(self.prompt, self.responses)


class RankingEntry(ResponseBody):
    """One response and its score."""

    index: int
    """Position of the response in the request, or in the order of generation."""
    reward: float
    """The score."""
    probability: float | None
    """Probability that a labeler prefers it to all others (Plackett–Luce); null if not calibrated."""
    num_tokens: int
    """Number of tokens that the model read, prompt and response together."""
    response: str
    """Text of the response."""


class RankResponse(ScoredResponse):
    """Responses, best first; those with equal scores in the order of the request."""

    ranking: list[RankingEntry]
    """All responses."""


class CandidateSampling(RequestBody):
    """How candidates are generated."""

    n: int = Field(default=4, ge=1, le=4_096)
    """Number of candidates; the policy service may allow fewer."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """The logits are divided by it."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Probability mass kept in nucleus sampling."""
    top_k: int = Field(default=0, ge=0, le=2**31 - 1)
    """Number of most likely tokens kept; 0 keeps all."""
    max_new_tokens: int = Field(default=256, ge=1, le=2**31 - 1)
    """Maximum number of tokens of a candidate."""
    stop: list[str] = Field(default=[], max_length=16)
    """Texts that end a candidate; they are not part of it."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """The same seed and weights give the same candidates; null: a random seed."""

    def service_fields(self, index: int | None) -> Places:
        """Return the fields of the policy service as callers know them, for the index of an error."""
        return {
            **dict.fromkeys(("request", "prompt", "prompt or sampling", "text", "tokens"), "prompt"),
            "conversation.messages": "prompt[]",
            "num_samples": "sampling.n",
            "sampling.stop_strings": stop_field("sampling.stop", self.stop, index),
        }

    def params(self) -> SamplingParams:
        """Convert it to the services' type."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=self.max_new_tokens,
            stop_strings=tuple(text for text in self.stop if text),
            seed=secrets.randbits(62) if self.seed is None else self.seed,
        )


class BestOfNRequest(RequestBody):
    """A prompt, and either candidates or how the policy service generates them."""

    model_config = ConfigDict(
        json_schema_extra=_examples(
            {"prompt": _PROMPT, "responses": _RESPONSES},
            {"prompt": _PROMPT, "sampling": {"n": 4, "temperature": 1.0, "max_new_tokens": 64}},
        )
    )

    prompt: Prompt
    """The prompt of all candidates."""
    responses: Annotated[list[str], Field(min_length=1, fail_fast=True)] | None = None
    """The candidates; null: generate them."""
    sampling: CandidateSampling | None = None
    """How to generate candidates; null: with the defaults."""
    calibrated: bool | None = None
    """As for /v1/rewards; null: calibrate if the model has a calibration temperature."""

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        if self.responses is not None and self.sampling is not None:
            raise ValueError("either `responses`, or `sampling` to generate them")
        if self.responses is None and not self.prompt:
            raise ValueError("a `prompt` to generate responses for, or `responses`")
        return self

    def score_items(self, responses: Sequence[str]) -> list[ScoreItem]:
        """Return the given or generated responses as the services' type."""
        return _text_pairs(self.prompt, responses)

    def prompt_input(self) -> PromptInput:
        """Convert the prompt to the services' type."""
        return _prompt_input(self.prompt)


class BestOfNResponse(ScoredResponse):
    """The best response, and all responses ranked."""

    best: RankingEntry
    """The first entry of `ranking`."""
    ranking: list[RankingEntry]
    """All candidates, best first."""
    generated: bool
    """Whether the policy service generated the candidates."""
