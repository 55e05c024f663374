"""vLLM's `POST /classify` for a model with one label, as verl calls it to compute rewards."""

from __future__ import annotations

import math
import time

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, model_validator

from services.gateway.backend import Backend
from services.gateway.dialects.openai_models import OpenAiError, check_model
from services.gateway.dialects.unread import check_request
from services.gateway.dialects.whole_inputs import WholeInput, body_limits, score_inputs
from services.runtime.http.body import json_route
from services.runtime.http.call import CurrentCall
from services.runtime.http.failures import error_responses


class ClassifyRequest(BaseModel):
    """A request of verl. Other fields of vLLM's API are refused if they would change the scores."""

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
    """An id from /v1/models, or `reward`; may be omitted."""
    input: WholeInput
    """Prompt and response as one text, as the chat template renders them, or as token ids; one or many."""
    use_activation: bool | None = None
    """False returns the score itself; otherwise σ(score), vLLM's default for a model with one label."""
    activation: bool | None = None
    """The name of `use_activation` before vLLM 0.11.2, which verl 0.7 sends."""
    softmax: bool | None = None
    """An even older name of `use_activation`."""

    @model_validator(mode="before")
    @classmethod
    def _check_unread(cls, body: object) -> object:
        check_request(body, frozenset(cls.model_fields))
        return body


class Classified(BaseModel):
    """One score."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    index: int
    """Position of the input in the request."""
    label: str | None
    """Name of the only label."""
    probs: list[float]
    """The score or σ(score), as `use_activation` says."""
    num_classes: int
    """Always 1."""


class ClassifyUsage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ClassifyResponse(BaseModel):
    """The response; verl reads `data[-1].probs[-1]`."""

    id: str
    object: str
    created: int
    model: str
    data: list[Classified]
    usage: ClassifyUsage


def router(backend: Backend) -> APIRouter:
    """Return the route."""
    routes = APIRouter(
        tags=["vLLM and verl"],
        route_class=json_route(lambda: body_limits(backend)),
        responses=error_responses(OpenAiError),
    )

    @routes.post("/classify", response_model=ClassifyResponse, summary="Score for vLLM clients such as verl")
    async def classify(body: ClassifyRequest, call: CurrentCall) -> JSONResponse:
        """Score each input and return the scores in order."""
        check_model(body.model, backend.reward)
        found = await score_inputs(backend, body.input, call)
        names = (body.use_activation, body.activation, body.softmax)
        plain = next((value for value in names if value is not None), True) is False
        total = sum(found.num_tokens)
        return JSONResponse(
            {
                "id": f"classify-{call.request_id}",
                "object": "list",
                "created": int(time.time()),
                "model": backend.reward_model(found.model_version),
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


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0
