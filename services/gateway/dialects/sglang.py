"""SGLang's `POST /v1/embeddings` of a reward model, as verl calls it: the embedding is the score."""

from __future__ import annotations

import base64
import struct
from typing import Literal

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


class EmbeddingsRequest(BaseModel):
    """A request of verl. Other fields of OpenAI's API are refused if they would change the scores."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "model": "reward",
                    "input": "<|user|>my lamp arrived broken .<|assistant|>sorry , we send a new one .",
                }
            ]
        },
    )

    model: str | None = None
    """An id from /v1/models, or `reward`; may be omitted."""
    input: WholeInput
    """Prompt and response as one text, as the chat template renders them, or as token ids; one or many."""
    encoding_format: Literal["float", "base64"] = "float"
    """`base64` returns the bytes of a float32, as OpenAI's own client asks for."""

    @model_validator(mode="before")
    @classmethod
    def _check_unread(cls, body: object) -> object:
        check_request(body, frozenset(cls.model_fields))
        return body


class Embedding(BaseModel):
    """One score."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["embedding"]
    index: int
    """Position of the input in the request."""
    embedding: list[float] | str
    """The score, as the only number of the embedding."""


class EmbeddingsUsage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """The response; verl reads `data[-1].embedding[-1]`."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


def router(backend: Backend) -> APIRouter:
    """Return the route."""
    routes = APIRouter(
        tags=["SGLang and verl"],
        route_class=json_route(lambda: body_limits(backend)),
        responses=error_responses(OpenAiError),
    )

    @routes.post("/v1/embeddings", response_model=EmbeddingsResponse, summary="Score for SGLang clients")
    async def embeddings(body: EmbeddingsRequest, call: CurrentCall) -> JSONResponse:
        """Score each input of the reward model. These are scores and not embeddings, as SGLang returns them
        for a reward model.
        """
        check_model(body.model, backend.reward)
        found = await score_inputs(backend, body.input, call)
        total = sum(found.num_tokens)
        return JSONResponse(
            {
                "object": "list",
                "data": [
                    {
                        "object": "embedding",
                        "index": index,
                        "embedding": _base64(score) if body.encoding_format == "base64" else [score],
                    }
                    for index, score in enumerate(found.scores)
                ],
                "model": backend.reward_model(found.model_version),
                "usage": {"prompt_tokens": total, "total_tokens": total},
            }
        )

    return routes


def _base64(score: float) -> str:
    return base64.b64encode(struct.pack("<f", score)).decode()
