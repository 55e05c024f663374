"""OpenAI's `/v1/models` and `/v1/models/{id}`, its error object, and the check of a request's `model`."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from fairlead.errors import NotFound
from fairlead.types import PolicyInfo, RewardInfo
from services.gateway.backend import Backend, PolledService
from services.runtime.http.failures import error_responses


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
    """A model that is served."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    """The configured model, a path or a Hugging Face Hub id; or an alias of it."""
    root: str
    """The configured model."""
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["fairlead"] = "fairlead"
    kind: Literal["reward", "policy"]
    """What the model is for; requests may use it as the model's name."""
    version: str
    """Version of the weights in use."""
    max_model_len: int
    """Maximum number of tokens, prompt and response together."""


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


def router(backend: Backend) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["OpenAI"], responses=error_responses(OpenAiError))

    @routes.get("/v1/models", response_model=ModelList, summary="List models")
    async def models() -> JSONResponse:
        """List the models of the services that are available."""
        return JSONResponse(ModelList(data=_served(backend)).model_dump())

    @routes.get("/v1/models/{name:path}", response_model=Model, summary="Describe a model")
    async def model(name: str) -> JSONResponse:
        """Return the model of this id or alias, or of the kind `reward` or `policy`."""
        for found in _served(backend):
            if name in (found.id, found.kind):
                return JSONResponse(found.model_dump())
        raise NotFound(f"no model {name[:200]!r}; /v1/models lists the models")

    return routes


def _served(backend: Backend) -> list[Model]:
    return [
        Model(
            id=name,
            root=each.info.model.model_id,
            kind=each.kind,
            version=each.version,
            max_model_len=each.info.model.max_sequence_tokens,
        )
        for each in (backend.reward, backend.policy)
        if each is not None and each.available
        for name in dict.fromkeys((each.info.model.model_id, *each.aliases))
    ]


def check_model(name: str | None, served: PolledService[RewardInfo | PolicyInfo] | None) -> None:
    """Check that the `model` of a request is what a service serves: its kind, id or alias, or empty.

    Raises:
        NotFound: it is something else.
    """
    if not name or served is None or not served.name or name in (served.kind, served.name, *served.aliases):
        return
    raise NotFound(
        f"no model {name[:200]!r}; use {served.kind!r} or {served.name!r}, or add the name to "
        f"{served.kind}.aliases of the gateway's configuration"
    )
