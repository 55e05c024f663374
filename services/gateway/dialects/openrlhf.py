"""OpenRLHF's remote reward model: `POST /get_reward`, compatible with its trainer and its own server."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fairlead.types import WholeText
from services.gateway.backend import Backend
from services.gateway.dialects.unread import check_request
from services.runtime.caller_fields import caller_fields
from services.runtime.http.body import json_route
from services.runtime.http.call import CurrentCall
from services.runtime.http.failures import error_responses
from services.runtime.http.json_limits import BodyLimits


class GetRewardRequest(BaseModel):
    """A request of OpenRLHF's trainer."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "query": ["<s>my lamp arrived broken . sorry , we send a new one .</s>"],
                    "prompts": ["my lamp arrived broken ."],
                    "labels": [None],
                }
            ]
        },
    )

    query: Annotated[list[str], Field(min_length=1, fail_fast=True)]
    """Prompt and response as one text, as the chat template renders them, with control tokens as text."""
    prompts: list[Any] | None = None
    """Ignored: `query` contains the prompts."""
    labels: list[Any] | None = None
    """Ignored: the reward model uses no labels."""

    @model_validator(mode="before")
    @classmethod
    def _check_unread(cls, body: object) -> object:
        check_request(body, frozenset(cls.model_fields))
        return body


class GetRewardResponse(BaseModel):
    """The response that OpenRLHF's trainer expects."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    rewards: list[float]
    """Scores from which advantages are computed."""
    scores: list[float]
    """Scores for filtering; the same values."""
    extra_logs: dict[str, list[float]]
    """Values that the trainer logs, one for each query."""


class OpenRlhfError(BaseModel):
    """Why a request failed."""

    detail: str
    """The error message."""


def router(backend: Backend) -> APIRouter:
    """Return the route."""
    limits = BodyLimits(
        entries=dict.fromkeys(("query", "prompts", "labels"), backend.max_items),
        max_text_bytes=backend.max_text_bytes,
        max_values=8 * backend.max_items + 64,
    )
    routes = APIRouter(
        tags=["OpenRLHF"], route_class=json_route(lambda: limits), responses=error_responses(OpenRlhfError)
    )

    @routes.post("/get_reward", response_model=GetRewardResponse, summary="Score for OpenRLHF")
    async def get_reward(body: GetRewardRequest, call: CurrentCall) -> JSONResponse:
        """Score each query and return the scores in order."""
        with caller_fields({"items": "query[]", "request": "query"}):
            found = await backend.score([WholeText(query) for query in body.query], call)
        scores = list(found.scores)
        logs = {"reward_model_tokens": [float(tokens) for tokens in found.num_tokens]}
        return JSONResponse({"rewards": scores, "scores": scores, "extra_logs": logs})

    return routes
