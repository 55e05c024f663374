"""The KServe Open Inference Protocol v2 (inference.GRPCInferenceService), as Triton's clients speak it.

Wire in, wire out on the reward service's own port, with tritonclient's generated messages: a copy of the
proto of our own would clash with them in one process. One model, whose versions are those of the weights.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from grpc import aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from fairlead import __version__
from fairlead.config.serving import RewardSection
from fairlead.errors import InvalidInput, NotFound, NotOffered
from fairlead.types import Priority, RewardInfo
from services.open_inference import messages as model
from services.open_inference.statistics import InferenceStatistics
from services.reward import tensors
from services.reward.scoring import ScoreCall, Scoring
from services.runtime.access import caller
from services.runtime.edge import deadline
from services.runtime.error_reply import rpc_error_reply
from services.runtime.streams import Bounds, process_bounded
from services.runtime.version_numbers import number_of

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
"""For health and reflection."""

_STREAM = f"/{SERVICE_NAME}/ModelStreamInfer"
_FIELDS = {"items.whole_text": "inputs.sentences", "items": "inputs"}
_Context = aio.ServicerContext[Any, Any]


class OpenInferenceServicer(pb_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The RPCs of inference.GRPCInferenceService."""

    def __init__(
        self, scoring: Scoring, section: RewardSection, bounds: Bounds, *, ready: Callable[[], bool]
    ) -> None:
        """
        Args:
            scoring: what scores.
            section: names and limits.
            bounds: of one stream.
            ready: whether the server is.
        """
        self._scoring, self._ready = scoring, ready
        self._name = section.model_name
        self._max_items = section.batching.max_items
        self._bounds = bounds
        self._statistics = InferenceStatistics()

    def add_to(self, server: aio.Server) -> None:
        """Registers the servicer."""
        pb_grpc.add_GRPCInferenceServiceServicer_to_server(self, server)

    async def ModelInfer(self, request: Any, context: _Context) -> Any:
        """Scores a batch."""
        return await self._infer(request, deadline(context))

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[Any], context: _Context
    ) -> AsyncIterator[Any]:
        """Scores many requests, answered in their order; one that cannot be scored is told, and no more."""
        until = deadline(context)

        async def answer(request: Any) -> Any:
            try:
                response = await self._infer(request, until, waits=True)
            except Exception as error:  # noqa: BLE001 - the edge of one request; the stream goes on
                what = rpc_error_reply(error, method=_STREAM, peer=context.peer())
                response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
                return pb.ModelStreamInferResponse(error_message=what.message, infer_response=response)
            # For clients of models that answer more than once.
            response.parameters["triton_final_response"].bool_param = True
            return pb.ModelStreamInferResponse(infer_response=response)

        size = pb.ModelInferRequest.ByteSize
        answered = process_bounded(request_iterator, answer, size=size, bounds=self._bounds, in_order=True)
        async with aclosing(answered):
            async for response in answered:
                yield response

    async def _infer(self, request: Any, until: float | None, *, waits: bool = False) -> Any:
        self._check_name(request.model_name)
        began = time.monotonic()
        info = self._info(request.model_version)
        try:
            tensors.check_outputs(request)
            items = tensors.read_items(request, info, max_items=self._max_items)
            call = ScoreCall(
                deadline=_earlier(until, _timeout_seconds(request)),
                priority=_priority(request),
                request_id=request.id or ("" if waits else caller().request_id),
                model_version=info.model_version if request.model_version else "",
                waits=waits,
            )
            scores = await self._scoring.score(items, call)
        except Exception as error:
            self._statistics.refused(info.model_version, seconds=time.monotonic() - began)
            if isinstance(error, InvalidInput) and error.field in _FIELDS:
                field = _FIELDS[error.field]
                raise InvalidInput(field, index=error.index, got=error.got, allowed=error.allowed) from error
            raise
        self._statistics.answered(
            scores.model_version,
            sequences=len(items),
            seconds=time.monotonic() - began,
            queue_seconds=scores.queue_seconds,
            compute_seconds=scores.compute_seconds,
        )
        return model.response(request, scores, name=self._name)

    async def ServerLive(self, request: Any, context: _Context) -> Any:
        """Whether the event loop answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: _Context) -> Any:
        """Whether requests are taken."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: Any, context: _Context) -> Any:
        """Whether requests for this model and version are taken."""
        known = request.name == self._name and self._is_served(request.version)
        return pb.ModelReadyResponse(ready=known and self._ready())

    async def ServerMetadata(self, request: Any, context: _Context) -> Any:
        """Who answers."""
        return pb.ServerMetadataResponse(name="fairlead", version=__version__, extensions=model.EXTENSIONS)

    async def ModelMetadata(self, request: Any, context: _Context) -> Any:
        """Tensors and versions."""
        self._check_name(request.name)
        self._info(request.version)
        return model.metadata(self._name, versions=self._versions())

    async def ModelConfig(self, request: Any, context: _Context) -> Any:
        """The model as Triton would describe it."""
        self._check_name(request.name)
        info = self._info(request.version)
        return pb.ModelConfigResponse(
            config=model.config(self._name, max_batch_size=self._max_items, info=info)
        )

    async def ModelStatistics(self, request: Any, context: _Context) -> Any:
        """Counts and times since the process began."""
        if request.name:
            self._check_name(request.name)
        versions = [self._info(request.version).model_version] if request.version else self._versions()
        found = [model.statistics(self._name, version, self._statistics.of(version)) for version in versions]
        return pb.ModelStatisticsResponse(model_stats=found)

    async def RepositoryIndex(self, request: Any, context: _Context) -> Any:
        """Every version that is served."""
        ready = self._ready()
        if request.ready and not ready:
            return pb.RepositoryIndexResponse()
        state = "READY" if ready else "UNAVAILABLE"
        index = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[
                index(name=self._name, version=number_of(version), state=state)
                for version in self._versions()
            ]
        )

    async def RepositoryModelLoad(self, request: Any, context: _Context) -> Any:
        """Not by this protocol."""
        raise NotOffered("models are not loaded by this protocol: use `fairlead reload`")

    async def RepositoryModelUnload(self, request: Any, context: _Context) -> Any:
        """Not by this protocol."""
        raise NotOffered("models are not unloaded by this protocol: use `fairlead reload`")

    async def SystemSharedMemoryStatus(self, request: Any, context: _Context) -> Any:
        """None is registered."""
        return pb.SystemSharedMemoryStatusResponse()

    async def SystemSharedMemoryUnregister(self, request: Any, context: _Context) -> Any:
        """None was registered."""
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(self, request: Any, context: _Context) -> Any:
        """None is registered."""
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryUnregister(self, request: Any, context: _Context) -> Any:
        """None was registered."""
        return pb.CudaSharedMemoryUnregisterResponse()

    async def SystemSharedMemoryRegister(self, request: Any, context: _Context) -> Any:
        """Not offered."""
        raise NotOffered("shared memory is not offered: send tensors in the request")

    async def CudaSharedMemoryRegister(self, request: Any, context: _Context) -> Any:
        """Not offered."""
        raise NotOffered("shared memory is not offered: send tensors in the request")

    async def TraceSetting(self, request: Any, context: _Context) -> Any:
        """Not offered."""
        raise NotOffered("traces are not set by this protocol")

    async def LogSettings(self, request: Any, context: _Context) -> Any:
        """Not offered."""
        raise NotOffered("logs are set by [observe] of the service's configuration")

    def _versions(self) -> list[str]:
        return [info.model_version for info in self._scoring.models]

    def _info(self, version: str) -> RewardInfo:
        """Of a version, named by its number or as it is; of the current one if it has no name."""
        if not version:
            return self._scoring.info
        for info in self._scoring.models:
            if version in (info.model_version, number_of(info.model_version)):
                return info
        served = ", ".join(f"{number_of(one)} ({one})" for one in self._versions())
        raise NotFound(f"no version {version!r} of {self._name!r} here; served: {served}")

    def _is_served(self, version: str) -> bool:
        try:
            self._info(version)
        except NotFound:
            return False
        return True

    def _check_name(self, name: str) -> None:
        if name != self._name:
            raise NotFound(f"no model {name!r} here; there is {self._name!r}")


def _earlier(until: float | None, timeout_seconds: float | None) -> float | None:
    if timeout_seconds is None:
        return until
    own = time.monotonic() + timeout_seconds
    return own if until is None else min(own, until)


def _number(request: Any, name: str) -> int:
    """An integer parameter; 0 if it is not there."""
    if name not in request.parameters:
        return 0
    value = request.parameters[name]
    kind = value.WhichOneof("parameter_choice")
    number = getattr(value, kind) if kind in ("int64_param", "uint64_param") else -1
    if number < 0:
        raise InvalidInput(f"parameters.{name}", got=kind or "nothing", allowed="an integer from 0 up")
    return int(number)


def _timeout_seconds(request: Any) -> float | None:
    """Triton's `timeout`, in microseconds; 0 is none."""
    return _number(request, "timeout") / 1e6 or None


def _priority(request: Any) -> Priority:
    """Triton's `priority`: 1 is the highest, 0 the model's own, which is the same here."""
    return Priority.BULK if _number(request, "priority") > 1 else Priority.ONLINE
