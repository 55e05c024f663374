"""vLLM's `POST /classify` for a model of one label, as verl calls it for rewards."""

from __future__ import annotations

import math
import time
from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from fairlead.errors import InvalidInput
from fairlead.types import ScoreItem, TokenPair, WholeText
from services.gateway.backend import Backend
from services.gateway.body import JsonRoute
from services.gateway.call import CurrentCall
from services.gateway.dialects.openai_models import OpenAiError, check_model
from services.gateway.failures import error_responses

_Ids = Annotated[list[int], Field(min_length=1)]


class ClassifyRequest(BaseModel):
    """What verl sends; other fields of vLLM's are not looked at."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "model": "reward",
                    "input": "<|user|>my lamp arrived broken .<|assistant|>sorry , we send a new one .",
                    "use_activation": False,
                }
            ]
        },
    )

    model: str | None = None
    """A name of /v1/models, or none."""
    input: str | Annotated[list[str], Field(min_length=1)] | _Ids | Annotated[list[_Ids], Field(min_length=1)]
    """Prompt and response in one text, as the chat template writes them, or as ids; one or many."""
    use_activation: bool | None = None
    """False: the score as it is. Otherwise σ(score), which is what vLLM makes of one label by default."""


class Classified(BaseModel):
    """One score."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    index: int
    """Of the input."""
    label: str | None
    """The name of the only label."""
    probs: list[float]
    """The score, or its σ."""
    num_classes: int
    """1."""


class Usage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ClassifyResponse(BaseModel):
    """What verl reads: `data[-1].probs[-1]`."""

    id: str
    object: str
    created: int
    model: str
    data: list[Classified]
    usage: Usage


def router(backend: Backend) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["vLLM and verl"], route_class=JsonRoute, responses=error_responses(OpenAiError))

    @routes.post("/classify", response_model=ClassifyResponse, summary="As vLLM scores for verl")
    async def classify(body: ClassifyRequest, call: CurrentCall) -> JSONResponse:
        """One score for each input."""
        check_model(body.model, backend.reward)
        found = await backend.score(_items(body.input), call)
        plain = body.use_activation is False
        total = sum(found.num_tokens)
        return JSONResponse(
            {
                "id": f"classify-{call.request_id}",
                "object": "list",
                "created": int(time.time()),
                "model": backend.reward_model,
                "data": [
                    {
                        "index": index,
                        "label": "LABEL_0",
                        "probs": [score if plain else _sigmoid(score)],
                        "num_classes": 1,
                    }
                    for index, score in enumerate(found.scores)
                ],
                "usage": {"prompt_tokens": total, "total_tokens": total, "completion_tokens": 0},
            }
        )

    return routes


def _items(given: str | list[str] | list[int] | list[list[int]]) -> list[ScoreItem]:
    if isinstance(given, str):
        return [WholeText(given)]
    if isinstance(given[0], int):
        return [_tokens(0, given)]
    return [
        WholeText(one) if isinstance(one, str) else _tokens(index, one) for index, one in enumerate(given)
    ]


def _tokens(index: int, given: object) -> TokenPair:
    ids = [int(token) for token in given] if isinstance(given, list) else []
    if not all(0 <= token < 2**31 for token in ids):
        raise InvalidInput("input", index=index, got="an id below 0 or beyond 2³¹", allowed="token ids")
    return TokenPair((), tuple(ids))


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0
