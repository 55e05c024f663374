"""The Open Inference Protocol v2 over HTTP, as KServe, Triton and `tritonclient.http` speak it.

Inputs as NeMo-Aligner's reward server has them: `sentences`, or `tokens` with `sequence_lengths`; output
`rewards`. Not part of the OpenAPI page beyond its paths: bodies may be JSON with bytes behind it.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from fairlead import __version__
from fairlead.errors import NotFound, NotOffered
from fairlead.types import Priority
from services.gateway.backend import Backend
from services.gateway.body import parse_json
from services.gateway.call import CurrentCall, HttpCall
from services.gateway.dialects.inference_requests import (
    HEADER_LENGTH,
    answer,
    items_of,
    number,
    split,
    wants_binary,
)
from services.gateway.dialects.model_statistics import ModelStatistics
from services.gateway.dialects.tensors import read_inputs
from services.gateway.failures import error_responses
from services.runtime.version_numbers import number_of

_INPUTS = (("sentences", "BYTES", 1), ("tokens", "INT64", -1), ("sequence_lengths", "INT64", 1))
_NOT_OFFERED = ("repository/models", "trace", "logging", "systemsharedmemory", "cudasharedmemory")


_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_EXAMPLE = {
    "inputs": [
        {"name": "sentences", "datatype": "BYTES", "shape": [1, 1], "data": ["my lamp broke . sorry ."]}
    ]
}
_INFERRED = {
    "description": "Scores; as JSON with bytes behind it where that was asked for.",
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
    """For people."""


class _Model:
    """The reward model in the protocol's words."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name = backend.model_name
        self.statistics = ModelStatistics()

    @property
    def version(self) -> str:
        """Of the weights, as a number.

        Raises:
            Unavailable: the service has not said it yet.
        """
        return number_of(self.backend.reward_info.model_version)

    async def named(self, name: str) -> None:
        """A dependency of paths that name a model.

        Raises:
            NotFound: another than the one that is served.
        """
        if name != self.name:
            raise NotFound(f"no model {name[:80]!r} here; there is {self.name!r}")

    async def versioned(self, name: str, version: str) -> None:
        """A dependency of paths that name a version of a model, too.

        Raises:
            NotFound: another than the one that is served.
        """
        await self.named(name)
        if version not in (self.version, self.backend.reward_info.model_version):
            raise NotFound(f"no version {version[:80]!r} of {self.name!r} here; there is {self.version}")

    def metadata(self) -> dict[str, Any]:
        """Names, types and shapes."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "fairlead",
            "inputs": [
                {"name": name, "datatype": datatype, "shape": [-1, width]}
                for name, datatype, width in _INPUTS
            ],
            "outputs": [{"name": "rewards", "datatype": "FP32", "shape": [-1, 1]}],
        }

    def config(self) -> dict[str, Any]:
        """As Triton's ModelConfig: dimensions without B; inputs are optional, as either kind will do."""
        return {
            "name": self.name,
            "platform": "fairlead",
            "backend": "fairlead",
            "max_batch_size": self.backend.max_items,
            "input": [
                {"name": name, "data_type": _config_type(datatype), "dims": [width], "optional": True}
                for name, datatype, width in _INPUTS
            ],
            "output": [{"name": "rewards", "data_type": "TYPE_FP32", "dims": [1]}],
            "parameters": {"model_id": {"string_value": self.backend.reward_info.model.model_id}},
        }


def router(backend: Backend) -> APIRouter:
    """The routes."""
    routes = APIRouter(
        prefix="/v2",
        tags=["open inference protocol"],
        responses={
            **error_responses(OpenInferenceError),
            503: {"description": "The reward service does not answer."},
        },
    )
    model = _Model(backend)
    _add_server(routes, model)
    _add_model(routes, model)

    for path, checked in _paths(model):

        @routes.post(
            f"{path}/infer",
            dependencies=checked,
            summary="Score",
            responses={200: _INFERRED},
            openapi_extra=_INFERENCE,
        )
        async def infer(request: Request, call: CurrentCall) -> Response:
            """`sentences` [B,1], or `tokens` [B,S] with `sequence_lengths` [B,1] → `rewards` [B,1]."""
            asked, binary = split(await request.body(), request.headers.get(HEADER_LENGTH))
            binary_output = wants_binary(asked)
            items = items_of(read_inputs(asked, binary))
            _shorten(call, number(asked, "timeout"))
            # Triton's priorities: 1 is the highest, 0 the model's own, which is the same here.
            priority = Priority.BULK if number(asked, "priority") > 1 else Priority.ONLINE
            with model.statistics.counting(len(items)) as count:
                scores = await backend.score(items, call, priority=priority)
                count(scores)
            return answer(asked, scores, name=model.name, binary=binary_output)

    return routes


def _paths(model: _Model) -> list[tuple[str, list[Any]]]:
    """Paths of a model and of a version of it, each with what checks the names in it."""
    return [
        ("/models/{name}", [Depends(model.named)]),
        ("/models/{name}/versions/{version}", [Depends(model.versioned)]),
    ]


def _add_server(routes: APIRouter, model: _Model) -> None:
    @routes.get("/health/live", response_class=Response, summary="Whether the process lives")
    async def live() -> Response:
        return Response()

    @routes.get("/health/ready", response_class=Response, summary="Whether the reward service answers")
    async def ready() -> Response:
        return Response(status_code=200 if model.backend.reward_available else 503)

    @routes.get("", summary="The server")
    async def server() -> JSONResponse:
        extensions = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
        return JSONResponse({"name": "fairlead", "version": __version__, "extensions": extensions})

    @routes.post("/repository/index", summary="Every model")
    async def index(request: Request) -> JSONResponse:
        ready = model.backend.reward_available
        asked = parse_json(await request.body()) if await request.body() else {}
        if isinstance(asked, dict) and asked.get("ready") and not ready:
            return JSONResponse([])
        return JSONResponse(
            [
                {
                    "name": model.name,
                    "version": model.version,
                    "state": "READY" if ready else "UNAVAILABLE",
                    "reason": "" if ready else "the reward service does not answer",
                }
            ]
        )

    for path in _NOT_OFFERED:
        routes.add_api_route(
            f"/{path}{{rest:path}}", _not_offered, methods=["GET", "POST"], include_in_schema=False
        )


async def _not_offered(request: Request) -> None:
    raise NotOffered(f"{request.url.path}: models, traces and logs are set when the services start")


def _add_model(routes: APIRouter, model: _Model) -> None:
    @routes.get("/models/stats", summary="What this process has scored, of all models")
    async def all_stats() -> JSONResponse:
        return JSONResponse(model.statistics.report(model.name, model.version))

    for path, checked in _paths(model):

        @routes.get(path, dependencies=checked, summary="Names, types and shapes of a model")
        async def metadata() -> JSONResponse:
            return JSONResponse(model.metadata())

        @routes.get(f"{path}/config", dependencies=checked, summary="Triton's configuration of a model")
        async def config() -> JSONResponse:
            return JSONResponse(model.config())

        @routes.get(f"{path}/stats", dependencies=checked, summary="What this process has scored")
        async def stats() -> JSONResponse:
            return JSONResponse(model.statistics.report(model.name, model.version))

        @routes.get(
            f"{path}/ready",
            response_class=Response,
            dependencies=checked,
            summary="Whether a model can be asked",
        )
        async def ready() -> Response:
            return Response(status_code=200 if model.backend.reward_available else 503)


def _shorten(call: HttpCall, timeout_microseconds: int) -> None:
    if timeout_microseconds:
        call.deadline = min(call.deadline, call.started + timeout_microseconds / 1e6)


def _config_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
