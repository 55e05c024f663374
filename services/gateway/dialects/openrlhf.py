"""OpenRLHF's remote reward model: `POST /get_reward`, as its trainer asks it and its own server answers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from fairlead.types import WholeText
from services.gateway.backend import Backend
from services.gateway.body import JsonRoute
from services.gateway.call import CurrentCall
from services.gateway.failures import error_responses


class GetRewardRequest(BaseModel):
    """What its trainer sends."""

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

    query: Annotated[list[str], Field(min_length=1)]
    """Prompt and response in one text, special tokens written out; read as it is."""
    prompts: list[Any] | None = None
    """Not needed: they are part of `query`."""
    labels: list[Any] | None = None
    """Not needed: the reward model knows none."""


class GetRewardResponse(BaseModel):
    """What its trainer reads."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    rewards: list[float]
    """What advantages are made of."""
    scores: list[float]
    """What is used for filtering: the same."""
    extra_logs: dict[str, list[float]]
    """One figure for each query, logged by its trainer."""


class OpenRlhfError(BaseModel):
    """Why a request failed."""

    detail: str
    """For people."""


def router(backend: Backend) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["OpenRLHF"], route_class=JsonRoute, responses=error_responses(OpenRlhfError))

    @routes.post("/get_reward", response_model=GetRewardResponse, summary="As OpenRLHF's remote reward model")
    async def get_reward(body: GetRewardRequest, call: CurrentCall) -> JSONResponse:
        """One score for each query."""
        found = await backend.score([WholeText(query) for query in body.query], call)
        scores = list(found.scores)
        logs = {"reward_model_tokens": [float(tokens) for tokens in found.num_tokens]}
        return JSONResponse({"rewards": scores, "scores": scores, "extra_logs": logs})

    return routes
