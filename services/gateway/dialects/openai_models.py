"""`GET /v1/models`, as OpenAI's clients list what is served, and how requests name a model."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from fairlead.errors import NotFound
from fairlead.types import PolicyInfo, RewardInfo
from services.gateway.backend import Backend, PolledService
from services.gateway.failures import error_responses


class OpenAiErrorDetail(BaseModel):
    """Why a request failed."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAiError(BaseModel):
    """OpenAI's error object."""

    error: OpenAiErrorDetail


class Model(BaseModel):
    """One model."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    """The model as it is configured, a path or a hub id."""
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["fairlead"] = "fairlead"
    kind: Literal["reward", "policy"]
    """What it is for; also accepted as its name."""
    version: str
    """Of the weights in use."""
    max_model_len: int
    """Longest sequence in tokens, prompt and response together."""


class ModelList(BaseModel):
    """Everything that is served."""

    object: Literal["list"] = "list"
    data: list[Model]


def router(backend: Backend) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["OpenAI"], responses=error_responses(OpenAiError))

    @routes.get("/v1/models", response_model=ModelList, summary="What is served")
    async def models() -> JSONResponse:
        """The models of the services that answer."""
        found = [
            Model(
                id=each.info.model.model_id,
                kind=each.kind,
                version=each.version,
                max_model_len=each.info.model.max_sequence_tokens,
            )
            for each in (backend.reward, backend.policy)
            if each is not None and each.available
        ]
        return JSONResponse(ModelList(data=found).model_dump())

    return routes


def check_model(name: str | None, served: PolledService[RewardInfo | PolicyInfo] | None) -> None:
    """That a request names what a service serves, by its kind, its id or not at all.

    Raises:
        NotFound: it names something else.
    """
    if not name or served is None or name in (served.kind, served.name) or not served.name:
        return
    raise NotFound(f"no model {name[:200]!r} here; there is {served.name!r}, also called {served.kind!r}")
