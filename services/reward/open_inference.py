"""Wire in, wire out for inference.GRPCInferenceService: the Open Inference Protocol v2 over gRPC.

On the reward service's own port. It uses tritonclient's generated messages: a second copy of the proto would
clash with them in one process. What the messages mean is decided in services/open_inference.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from grpc import aio
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from fairlead.config.serving import RewardSection
from fairlead.errors import InvalidInput, NotFound, NotOffered
from fairlead.types import Priority, ScoreItem, Scores
from services.open_inference import messages, tensors
from services.open_inference.model import NOT_OFFERED, InferenceModel, InferenceRequest
from services.open_inference.tensors import InputTensor
from services.open_inference.versions import number_of
from services.reward.scoring import ScoreCall, Scoring
from services.runtime.access.control import caller
from services.runtime.edge import deadline
from services.runtime.error_reply import rpc_error_reply
from services.runtime.rpc_call import current_call
from services.runtime.streams import Bounds, process_bounded

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
"""Full name of the service, for health and reflection."""

MAX_NAME_CHARACTERS = 1_024
"""Characters of a name or id that an error repeats."""

_STREAM = f"/{SERVICE_NAME}/ModelStreamInfer"
_CONTENTS = {
    "BYTES": "bytes_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
}
"""Field of InferTensorContents that holds the elements of a datatype."""
_Context = aio.ServicerContext[Any, Any]


class OpenInferenceServicer(pb_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The RPCs of inference.GRPCInferenceService."""

    def __init__(
        self, scoring: Scoring, section: RewardSection, bounds: Bounds, *, ready: Callable[[], bool]
    ) -> None:
        """
        Args:
            scoring: computes the scores.
            section: name of the model and limits.
            bounds: limits of each stream.
            ready: returns whether the server accepts requests.
        """
        self._scoring = scoring
        self._bounds = bounds
        self._model = InferenceModel(
            section.model_name,
            max_batch_size=section.batching.max_items,
            models=lambda: scoring.models,
            ready=ready,
            aliases=section.aliases,
        )

    def add_to(self, server: aio.Server) -> None:
        """Register the servicer."""
        pb_grpc.add_GRPCInferenceServiceServicer_to_server(self, server)

    async def ModelInfer(self, request: Any, context: _Context) -> Any:
        """Score a batch."""
        return await self._infer(request, deadline(context))

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[Any], context: _Context
    ) -> AsyncIterator[Any]:
        """Score many requests; answer them in order, a request that fails with its error."""
        until = deadline(context)

        async def answer(request: Any) -> Any:
            try:
                response = await self._infer(request, until, waits=True)
            except Exception as error:  # noqa: BLE001 - the edge of one request; the stream continues
                what = rpc_error_reply(error, method=_STREAM, peer=current_call().peer)
                response = pb.ModelInferResponse(
                    model_name=request.model_name[:MAX_NAME_CHARACTERS], id=request.id[:MAX_NAME_CHARACTERS]
                )
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
        self._model.check_name(request.model_name)
        version = request.model_version

        async def run(items: list[ScoreItem], priority: Priority, timeout_seconds: float | None) -> Scores:
            call = ScoreCall(
                deadline=_earlier(until, timeout_seconds),
                priority=priority,
                request_id=request.id or ("" if waits else caller().request_id),
                model_version=self._model.find(version).model_version if version else "",
                waits=waits,
            )
            return await self._scoring.score(items, call)

        scores = await self._model.score(version, lambda: _read(request), run, num_bytes=request.ByteSize())
        return _response(request, scores)

    async def ServerLive(self, request: Any, context: _Context) -> Any:
        """Return true: the event loop answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: _Context) -> Any:
        """Return whether the server accepts requests."""
        return pb.ServerReadyResponse(ready=self._model.ready)

    async def ModelReady(self, request: Any, context: _Context) -> Any:
        """Return whether requests for this model and version are accepted."""
        try:
            self._model.check_name(request.name)
            self._model.find(request.version)
        except NotFound:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._model.ready)

    async def ServerMetadata(self, request: Any, context: _Context) -> Any:
        """Return name, version and extensions of the server."""
        return _message(messages.server_metadata(), pb.ServerMetadataResponse())

    async def ModelMetadata(self, request: Any, context: _Context) -> Any:
        """Return names, types and shapes of the tensors, and the served versions."""
        self._model.check_name(request.name)
        self._model.find(request.version)
        return _message(self._model.metadata(), pb.ModelMetadataResponse())

    async def ModelConfig(self, request: Any, context: _Context) -> Any:
        """Return the model's configuration as Triton describes it."""
        self._model.check_name(request.name)
        config = _message(self._model.config(request.version), model_config_pb2.ModelConfig())
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(self, request: Any, context: _Context) -> Any:
        """Return counts and times since the process started."""
        if request.name:
            self._model.check_name(request.name)
        return _message(self._model.statistics(request.version), pb.ModelStatisticsResponse())

    async def RepositoryIndex(self, request: Any, context: _Context) -> Any:
        """Return every version that is served."""
        index = self._model.index(only_ready=request.ready)
        return _message({"models": index}, pb.RepositoryIndexResponse())

    async def RepositoryModelLoad(self, request: Any, context: _Context) -> Any:
        """Not offered."""
        raise NotOffered(NOT_OFFERED["repository"])

    async def RepositoryModelUnload(self, request: Any, context: _Context) -> Any:
        """Not offered."""
        raise NotOffered(NOT_OFFERED["repository"])

    async def SystemSharedMemoryStatus(self, request: Any, context: _Context) -> Any:
        """Return no regions: none can be registered."""
        return pb.SystemSharedMemoryStatusResponse()

    async def SystemSharedMemoryUnregister(self, request: Any, context: _Context) -> Any:
        """Do nothing: no region can be registered."""
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(self, request: Any, context: _Context) -> Any:
        """Return no regions: none can be registered."""
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryUnregister(self, request: Any, context: _Context) -> Any:
        """Do nothing: no region can be registered."""
        return pb.CudaSharedMemoryUnregisterResponse()

    async def SystemSharedMemoryRegister(self, request: Any, context: _Context) -> Any:
        """Not offered."""
        raise NotOffered(NOT_OFFERED["shared memory"])

    async def CudaSharedMemoryRegister(self, request: Any, context: _Context) -> Any:
        """Not offered."""
        raise NotOffered(NOT_OFFERED["shared memory"])

    async def TraceSetting(self, request: Any, context: _Context) -> Any:
        """Not offered."""
        raise NotOffered(NOT_OFFERED["trace"])

    async def LogSettings(self, request: Any, context: _Context) -> Any:
        """Not offered."""
        raise NotOffered(NOT_OFFERED["logging"])


def _read(request: Any) -> InferenceRequest:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInput(
            "raw_input_contents",
            got=f"{len(raw)} for {len(request.inputs)} inputs",
            allowed="one for each input",
        )
    return InferenceRequest(
        inputs=[
            _input_tensor(tensor, raw[index] if raw else None) for index, tensor in enumerate(request.inputs)
        ],
        outputs=[(output.name, tuple(output.parameters)) for output in request.outputs],
        parameters={name: _parameter(value) for name, value in request.parameters.items()},
    )


def _input_tensor(tensor: Any, raw: bytes | None) -> InputTensor:
    field = f"inputs.{tensor.name[:80]}"
    if raw is not None and tensor.HasField("contents"):
        raise InvalidInput(field, got="contents and raw_input_contents", allowed="one of them")
    kind = _CONTENTS.get(tensor.datatype)
    if raw is None and kind is not None and "shared_memory_region" not in tensor.parameters:
        found = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
        if found != [kind]:
            got = ", ".join(found) or "no contents"
            raise InvalidInput(field, got=got, allowed=f"raw_input_contents or {kind}")
    return InputTensor(
        name=tensor.name,
        datatype=tensor.datatype,
        shape=tuple(tensor.shape),
        parameters=tuple(tensor.parameters),
        raw=raw,
        values=getattr(tensor.contents, kind) if raw is None and kind is not None else (),
    )


def _parameter(value: Any) -> object:
    kind = value.WhichOneof("parameter_choice")
    return None if kind is None else getattr(value, kind)


def _response(request: Any, scores: Scores) -> Any:
    """Return a ModelInferResponse, with raw contents if the request has them, else with typed contents."""
    response = pb.ModelInferResponse(
        model_name=request.model_name, model_version=number_of(scores.model_version), id=request.id
    )
    output = response.outputs.add(
        name=tensors.REWARDS, datatype=tensors.DATATYPES[tensors.REWARDS], shape=[len(scores.scores), 1]
    )
    if request.raw_input_contents:
        response.raw_output_contents.append(tensors.raw_rewards(scores.scores))
    else:
        output.contents.fp32_contents.extend(scores.scores)
    for name, value in messages.response_parameters(scores).items():
        if isinstance(value, str):
            response.parameters[name].string_param = value
        elif isinstance(value, int):
            response.parameters[name].int64_param = value
        else:
            response.parameters[name].double_param = value
    return response


def _message(fields: messages.Message, message: Message) -> Any:
    return json_format.ParseDict(fields, message)


def _earlier(until: float | None, timeout_seconds: float | None) -> float | None:
    if timeout_seconds is None:
        return until
    own = time.monotonic() + timeout_seconds
    return own if until is None else min(own, until)
