"""The Open Inference Protocol v2 over HTTP, as KServe, Triton and `tritonclient.http` speak it: its routes.

What the messages mean is decided in services/open_inference. The OpenAPI page lists the paths only: bodies
may be JSON followed by bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from fairlead.errors import NotOffered
from fairlead.types import Priority, RewardInfo, ScoreItem, Scores
from services.gateway.backend import Backend
from services.gateway.dialects.inference_requests import (
    HEADER_LENGTH,
    body_limits,
    read,
    response,
    split,
    wants_binary,
)
from services.open_inference import messages
from services.open_inference.model import NOT_OFFERED, InferenceModel
from services.runtime.http.body import body_of, read_json
from services.runtime.http.call import CurrentCall
from services.runtime.http.failures import error_responses
from services.runtime.http.json_limits import BodyLimits
from services.runtime.http.paths import path_of

_NOT_OFFERED = {
    "repository/models": "repository",
    "trace": "trace",
    "logging": "logging",
    "systemsharedmemory": "shared memory",
    "cudasharedmemory": "shared memory",
}
"""Paths that are not offered, and the reason for each in `NOT_OFFERED`."""

_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_EXAMPLE = {
    "inputs": [
        {"name": "sentences", "datatype": "BYTES", "shape": [1, 1], "data": ["my lamp broke . sorry ."]}
    ]
}
_INFERRED = {
    "description": "Scores: JSON, followed by a binary tensor where the request asks for one.",
    "content": _BINARY,
}
_INFERENCE = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}, "example": _EXAMPLE}, **_BINARY},
    }
}


class OpenInferenceError(BaseModel):
    """Why a request failed."""

    error: str
    """A sentence for people."""


def router(backend: Backend) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(
        prefix="/v2",
        tags=["open inference protocol"],
        responses={
            **error_responses(OpenInferenceError),
            503: {"description": "The reward service is not available."},
        },
    )

    def models() -> Sequence[RewardInfo]:
        return backend.reward_info.served

    model = InferenceModel(
        backend.model_name,
        max_batch_size=backend.max_items,
        models=models,
        ready=lambda: backend.reward_available,
        aliases=backend.model_aliases,
    )
    _add_server(routes, model)
    _add_model(routes, model)
    _add_inference(routes, model, backend)
    return routes


def _add_inference(routes: APIRouter, model: InferenceModel, backend: Backend) -> None:
    for path, checks in _paths(model):

        @routes.post(
            f"{path}/infer",
            dependencies=checks,
            summary="Score",
            responses={200: _INFERRED},
            openapi_extra=_INFERENCE,
        )
        async def infer(request: Request, call: CurrentCall) -> Response:
            """Score `sentences` [B,1], or `tokens` [B,S] with `sequence_lengths` [B,1] → `rewards` [B,1]."""
            data = body_of(request.scope)
            limits = body_limits(
                max_items=backend.max_items,
                max_sequence_tokens=backend.max_sequence_tokens,
                max_request_tokens=backend.max_request_tokens,
                max_text_bytes=backend.max_text_bytes,
            )
            body, binary = await split(data, request.headers.get(HEADER_LENGTH), limits)

            async def run(
                items: list[ScoreItem], priority: Priority, timeout_seconds: float | None
            ) -> Scores:
                limited = call
                if timeout_seconds is not None:
                    deadline = min(call.deadline, call.started + timeout_seconds)
                    limited = replace(call, deadline=deadline)
                pinned = model.find(version).model_version if version else ""
                return await backend.score(items, limited, priority=priority, model_version=pinned)

            version = request.path_params.get("version", "")
            scores = await model.score(version, lambda: read(body, binary), run, num_bytes=len(data))
            name = request.path_params["name"]
            return response(body, scores, name=name, binary=wants_binary(body))


def _paths(model: InferenceModel) -> list[tuple[str, list[Any]]]:
    """Return the path of the model and of one of its versions, each with the checks of the names in it."""

    async def check_name(name: str) -> None:
        model.check_name(name)

    async def check_version(name: str, version: str) -> None:
        model.check_name(name)
        model.find(version)

    return [
        ("/models/{name}", [Depends(check_name)]),
        ("/models/{name}/versions/{version}", [Depends(check_version)]),
    ]


def _add_server(routes: APIRouter, model: InferenceModel) -> None:
    # The protocol asks only for the status; KServe's own client also reads the body.
    @routes.head("/health/live", include_in_schema=False)
    @routes.get("/health/live", summary="Whether the process is alive")
    async def live() -> JSONResponse:
        return JSONResponse({"live": True})

    @routes.head("/health/ready", include_in_schema=False)
    @routes.get("/health/ready", summary="Whether the reward service is available")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": model.ready}, 200 if model.ready else 503)

    @routes.get("", summary="The server")
    async def server() -> JSONResponse:
        return JSONResponse(messages.server_metadata(more_extensions=["binary_tensor_data"]))

    @routes.post("/repository/index", summary="Every model")
    async def index(request: Request) -> JSONResponse:
        data = body_of(request.scope)
        body = await read_json(data, BodyLimits(max_values=64)) if data else {}
        only_ready = isinstance(body, dict) and bool(body.get("ready"))
        return JSONResponse(model.index(only_ready=only_ready))

    for path in ("systemsharedmemory", "cudasharedmemory"):
        # No region can be registered, so there is none to list and none to unregister.
        for region in ("", "/region/{region}"):
            routes.add_api_route(f"/{path}{region}/status", _no_regions, include_in_schema=False)
            routes.add_api_route(
                f"/{path}{region}/unregister", _unregistered, methods=["POST"], include_in_schema=False
            )
    for path in _NOT_OFFERED:
        routes.add_api_route(
            f"/{path}{{rest:path}}", _not_offered, methods=["GET", "POST"], include_in_schema=False
        )


async def _no_regions() -> JSONResponse:
    return JSONResponse([])


async def _unregistered() -> Response:
    return Response()


async def _not_offered(request: Request) -> None:
    path = path_of(request.scope).removeprefix("/v2/")
    reason = next(reason for start, reason in _NOT_OFFERED.items() if path.startswith(start))
    raise NotOffered(NOT_OFFERED[reason])


def _add_model(routes: APIRouter, model: InferenceModel) -> None:
    @routes.get("/models/stats", summary="What this process has scored, for all models")
    async def all_stats() -> JSONResponse:
        return JSONResponse(model.statistics(""))

    for path, checks in _paths(model):

        @routes.get(path, dependencies=checks, summary="Names, types and shapes of a model's tensors")
        async def metadata() -> JSONResponse:
            return JSONResponse(model.metadata())

        @routes.get(f"{path}/config", dependencies=checks, summary="Triton's configuration of a model")
        async def config(request: Request) -> JSONResponse:
            return JSONResponse(model.config(request.path_params.get("version", "")))

        @routes.get(f"{path}/stats", dependencies=checks, summary="What this process has scored")
        async def stats(request: Request) -> JSONResponse:
            return JSONResponse(model.statistics(request.path_params.get("version", "")))

        @routes.get(
            f"{path}/ready",
            response_class=Response,
            dependencies=checks,
            summary="Whether a model can score requests",
        )
        async def ready() -> Response:
            return Response(status_code=200 if model.ready else 503)
