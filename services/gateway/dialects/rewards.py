"""Fairlead's own dialect: scores, rankings and best-of-n of texts and conversations."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from fairlead.clients import ranking
from fairlead.types import Message, Priority, SamplingParams, ScoreItem, Scores, TextPair
from services.gateway.backend import Backend, PromptInput
from services.gateway.body import json_route
from services.gateway.call import CurrentCall, HttpCall
from services.gateway.dialects.openai_chat import cut_at_stop
from services.gateway.failures import ERROR_RESPONSES, UNION_TAGS
from services.gateway.json_limits import BodyLimits

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
    return UNION_TAGS[1] if isinstance(value, (list, tuple)) else UNION_TAGS[0]


_MAX_TURNS = 4_096

Turns = Annotated[list[Turn], Field(min_length=1, max_length=_MAX_TURNS, fail_fast=True)]
Prompt = Annotated[
    Annotated[str, Tag(UNION_TAGS[0])] | Annotated[Turns, Tag(UNION_TAGS[1])], Discriminator(_prompt_tag)
]
"""Plain text, or the turns before the response, which the model's chat template renders."""


def _text_pair(prompt: str | list[Turn], response: str) -> TextPair:
    """Return prompt and response as the reward service expects them.

    Raises:
        ValueError: the last turn of the prompt is the assistant's.
    """
    if isinstance(prompt, str):
        return TextPair(prompt, response)
    if prompt[-1].role == "assistant":
        raise ValueError("a prompt whose last turn is not the assistant's")
    return TextPair("", response, tuple(turn.message() for turn in prompt))


class Item(RequestBody):
    """One response to score: either `prompt` and `response`, or `messages` that end with the response."""

    prompt: Prompt = ""
    """The prompt, as text or as turns."""
    response: str | None = None
    """The response to score."""
    messages: Turns | None = None
    """The whole conversation; the last turn, the assistant's, is the response to score."""

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        self.item()
        return self

    def item(self) -> ScoreItem:
        """Convert it to the services' type.

        Raises:
            ValueError: the item has neither or both forms.
        """
        if self.messages is None:
            if self.response is None:
                raise ValueError("`response`, or `messages` that end with the assistant's response")
            return _text_pair(self.prompt, self.response)
        if self.response is not None or self.prompt:
            raise ValueError("either `messages`, or `prompt` and `response`")
        *before, last = self.messages
        if last.role != "assistant" or not before:
            raise ValueError("at least two `messages`, of which the last is the assistant's response")
        return _text_pair(before, last.content)


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
    """The prompt of all `responses`."""
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
        self.score_items()
        return self

    def score_items(self) -> list[ScoreItem]:
        """Convert the responses to the services' type."""
        if self.items is not None:
            return [item.item() for item in self.items]
        return [_text_pair(self.prompt, response) for response in self.responses or ()]


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

    prompt: Prompt = ""
    """The prompt of all responses."""
    responses: Annotated[list[str], Field(min_length=1, fail_fast=True)]
    """The candidates."""
    calibrated: bool | None = None
    """As for /v1/rewards; null: calibrate if the model has a calibration temperature."""

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        self.score_items()
        return self

    def score_items(self) -> list[ScoreItem]:
        """Convert the responses to the services' type."""
        return [_text_pair(self.prompt, response) for response in self.responses]


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
    stop: tuple[str, ...] = Field(default=(), max_length=16)
    """Texts that end a candidate; they are not part of it."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """The same seed and weights give the same candidates; null: a random seed."""

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

    prompt: Prompt = ""
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
        _text_pair(self.prompt, "")
        return self

    def prompt_input(self) -> PromptInput:
        """Convert the prompt to the services' type."""
        return self.prompt if isinstance(self.prompt, str) else tuple(turn.message() for turn in self.prompt)


class BestOfNResponse(ScoredResponse):
    """The best response, and all responses ranked."""

    best: RankingEntry
    """The first entry of `ranking`."""
    ranking: list[RankingEntry]
    """All candidates, best first."""
    generated: bool
    """Whether the policy service generated the candidates."""


def router(backend: Backend) -> APIRouter:
    """Return the routes."""
    limits = _body_limits(max_items=backend.max_items, max_text_bytes=backend.max_text_bytes)
    routes = APIRouter(tags=["rewards"], route_class=json_route(lambda: limits), responses=ERROR_RESPONSES)

    @routes.post("/v1/rewards", response_model=RewardsResponse, summary="Score responses")
    async def rewards(body: RewardsRequest, call: CurrentCall) -> Response:
        """Score each response and return the scores in order. If one item is invalid, nothing is scored."""
        scores = await backend.score(body.score_items(), call, priority=Priority(body.priority))
        values = (ranking.calibrated(scores) if body.calibrated else scores).scores
        entries = [
            RewardEntry(index=index, reward=value, num_tokens=tokens)
            for index, (value, tokens) in enumerate(zip(values, scores.num_tokens, strict=True))
        ]
        return _json(RewardsResponse(rewards=entries, **_scored(backend, call, scores, body.calibrated)))

    @routes.post("/v1/rewards:rank", response_model=RankResponse, summary="Rank responses to a prompt")
    async def rank(body: RankRequest, call: CurrentCall) -> Response:
        """Rank responses to one prompt, best first."""
        entries, scored = await _ranked(backend, call, body.score_items(), body.responses, body.calibrated)
        return _json(RankResponse(ranking=entries, **scored))

    @routes.post("/v1/rewards:best-of-n", response_model=BestOfNResponse, summary="Find the best response")
    async def best_of_n(body: BestOfNRequest, call: CurrentCall) -> Response:
        """Rank the given responses, or responses that the policy service generates, and return the best."""
        responses = body.responses
        if responses is None:
            sampling = body.sampling or CandidateSampling()
            generated = await backend.generate(
                body.prompt_input(), sampling.params(), call, num_samples=sampling.n
            )
            responses = [cut_at_stop(one.text, sampling.stop) for one in generated.completions]
        items = [_text_pair(body.prompt, response) for response in responses]
        entries, scored = await _ranked(backend, call, items, responses, body.calibrated)
        return _json(
            BestOfNResponse(best=entries[0], ranking=entries, generated=body.responses is None, **scored)
        )

    return routes


def _body_limits(*, max_items: int, max_text_bytes: int) -> BodyLimits:
    return BodyLimits(
        entries={
            "items": max_items,
            "responses": max_items,
            "prompt": _MAX_TURNS,
            "items[].prompt": _MAX_TURNS,
            "items[].messages": _MAX_TURNS,
            "sampling.stop": 16,
        },
        max_text_bytes=max_text_bytes,
    )


async def _ranked(
    backend: Backend,
    call: HttpCall,
    items: Sequence[ScoreItem],
    responses: Sequence[str],
    calibrate: bool | None,
) -> tuple[list[RankingEntry], dict[str, Any]]:
    """Score and rank responses; return the entries and the fields of `ScoredResponse`."""
    scores = await backend.score(items, call)
    found = ranking.rank(responses, scores, calibrate=calibrate)
    entries = [
        RankingEntry(
            index=one.index,
            reward=one.score,
            probability=one.probability,
            num_tokens=one.num_tokens,
            response=one.response,
        )
        for one in found.ranked
    ]
    return entries, _scored(backend, call, scores, found.is_calibrated)


def _scored(backend: Backend, call: HttpCall, scores: Scores, is_calibrated: bool) -> dict[str, Any]:
    """Return the fields of `ScoredResponse`."""
    return {
        "request_id": call.request_id,
        "model": backend.reward_model(scores.model_version),
        "model_version": scores.model_version,
        "calibrated": is_calibrated,
        "calibration_temperature": scores.calibration_temperature or None,
        "total_tokens": sum(scores.num_tokens),
        "timing": Timing(
            total_seconds=round(time.monotonic() - call.started, 6),
            queue_seconds=round(scores.queue_seconds, 6),
            compute_seconds=round(scores.compute_seconds, 6),
        ),
    }


def _json(body: RewardsResponse | RankResponse | BestOfNResponse) -> Response:
    # Serialized once, by pydantic; FastAPI would validate and convert the body again.
    return Response(body.model_dump_json(), media_type="application/json")
