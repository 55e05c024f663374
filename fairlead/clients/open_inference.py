"""The client of a reward model served by Triton or another server of the Open Inference Protocol v2.

Sits between the reward service's Triton engine (or a user) and `fairlead.rpc`: addresses, deadlines and
retries are those of every client. Needs tritonclient for the generated stubs. Knows tensors, no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import grpc
import numpy as np
from grpc import aio
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc
from tritonclient.utils import serialize_byte_tensor

from fairlead.clients.client import AsyncClient, ClientOptions
from fairlead.errors import ConfigError, CorruptData, FairleadError, InternalError, Unavailable
from fairlead.types import Priority

_PRIORITY = {Priority.ONLINE: 1, Priority.BULK: 2}
_MODEL = "reward.triton.model"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as its server describes it."""

    name: str
    """Name of the model on the server."""
    version: str
    """The requested version, or the newest one served."""
    max_batch_size: int
    """Largest number of rows of a request; 0 if the server does not batch."""
    inputs: tuple[str, ...]
    """Names of the input tensors."""
    parameters: Mapping[str, str]
    """Parameters of its configuration, such as those that `fairlead export-triton` writes."""


@dataclass(frozen=True, slots=True)
class RemoteScores:
    """The response to one request."""

    scores: tuple[float, ...]
    """One for each row."""
    num_tokens: tuple[int, ...]
    """Number of tokens of each row; empty if the server does not return them."""
    version: str = ""
    """Version of the model, as numbered by the server."""


class AsyncOpenInferenceClient(AsyncClient[Any]):
    """One reward model on a server, or on several servers with the same model. Used within one event loop."""

    _service = "triton"

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        model: str = "reward",
        version: str = "",
        **options: Unpack[ClientOptions],
    ) -> None:
        """
        Args:
            addresses: `host:port` of the gRPC endpoint of every server.
            model: name of the model on the server.
            version: version of the model; empty to let the server choose.
            **options: see `ClientOptions`.

        Raises:
            ConfigError: for an invalid address or unusable certificates.
        """
        super().__init__(addresses, **options)
        self._model = model
        self._version = version

    def _make_stub(self, channel: aio.Channel) -> Any:  # noqa: ANN401 - generated without types
        return pb_grpc.GRPCInferenceServiceStub(channel)

    async def is_ready(self, *, timeout_seconds: float = 2.0) -> bool:
        """Return whether the model is ready."""
        request = pb.ModelReadyRequest(name=self._model, version=self._version)
        try:
            answer = await self._replicas.call(
                lambda stub: stub.ModelReady, request, timeout_seconds=timeout_seconds
            )
        except FairleadError:
            return False
        return bool(answer.ready)

    async def served(self, version: str | None = None) -> ServedModel:
        """Return the server's description of the model, or of another version of it.

        Raises:
            ConfigError: if the model has no output `rewards`.
            FairleadError: Unavailable (also for a missing model) …, after retries.
        """
        wanted = self._version if version is None else version
        metadata = await self._call(
            "ModelMetadata", pb.ModelMetadataRequest(name=self._model, version=wanted)
        )
        if "rewards" not in {output.name for output in metadata.outputs}:
            raise ConfigError(
                _MODEL, got=f"{self._model}, without an output `rewards`", allowed="a reward model"
            )
        try:
            answer = await self._call("ModelConfig", pb.ModelConfigRequest(name=self._model, version=wanted))
            config = answer.config
        except InternalError as error:
            if _code(error) is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            config = None  # an extension of Triton that other servers may lack
        versions = sorted(metadata.versions, key=lambda text: (len(text), text))
        return ServedModel(
            name=metadata.name,
            version=wanted or (versions[-1] if versions else ""),
            max_batch_size=config.max_batch_size if config is not None else 1,
            inputs=tuple(each.name for each in metadata.inputs),
            parameters={key: value.string_value for key, value in config.parameters.items()}
            if config is not None
            else {},
        )

    async def score_tokens(
        self,
        rows: Sequence[Sequence[int]],
        *,
        timeout_seconds: float | None = None,
        priority: Priority = Priority.ONLINE,
    ) -> RemoteScores:
        """Return the scores of sequences of token ids, in one request.

        Args:
            rows: ids of prompt and response together, at least one each.
            timeout_seconds: deadline of this call.
            priority: priority in the server's queue.

        Raises:
            RemoteInvalidInput: if the server refuses a row; the index is that of the row.
            FairleadError: Unavailable, Overloaded, DeadlineExceeded …
        """
        lengths = np.array([len(row) for row in rows], dtype=np.int64).reshape(-1, 1)
        tokens = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = row
        request = self._request(timeout_seconds, priority)
        _add(request, "tokens", tokens)
        _add(request, "sequence_lengths", lengths)
        return await self._infer(request, len(rows), timeout_seconds)

    async def score_sentences(
        self,
        sentences: Sequence[str],
        *,
        timeout_seconds: float | None = None,
        priority: Priority = Priority.ONLINE,
    ) -> RemoteScores:
        """Return the scores of whole texts, which the server tokenizes; otherwise as `score_tokens`."""
        request = self._request(timeout_seconds, priority)
        texts = np.array([text.encode() for text in sentences], dtype=np.object_).reshape(-1, 1)
        _add(request, "sentences", texts)
        return await self._infer(request, len(sentences), timeout_seconds)

    def _request(self, timeout_seconds: float | None, priority: Priority) -> Any:  # noqa: ANN401 - generated
        request = pb.ModelInferRequest(model_name=self._model, model_version=self._version)
        request.parameters["priority"].uint64_param = _PRIORITY[priority]
        if timeout_seconds is not None:
            # The server drops a request that is still in its queue by then.
            request.parameters["timeout"].int64_param = max(1, round(timeout_seconds * 1e6))
        return request

    async def _infer(self, request: Any, rows: int, timeout_seconds: float | None) -> RemoteScores:  # noqa: ANN401
        response = await self._call("ModelInfer", request, timeout_seconds=timeout_seconds)
        tensors = dict(
            zip([output.name for output in response.outputs], response.raw_output_contents, strict=False)
        )
        if "rewards" not in tensors:
            raise CorruptData(f"triton: the response of model {self._model!r} has no output `rewards`")
        kinds = {output.name: output.datatype for output in response.outputs}
        if kinds["rewards"] != "FP32":
            raise CorruptData(f"triton: output `rewards` has type {kinds['rewards']}, expected FP32")
        scores = np.frombuffer(tensors["rewards"], dtype="<f4")
        if len(scores) != rows:
            raise CorruptData(f"triton: received {len(scores)} scores for {rows} rows")
        counted = kinds.get("num_tokens") == "INT64"
        counts = np.frombuffer(tensors["num_tokens"] if counted else b"", dtype="<i8")
        return RemoteScores(tuple(map(float, scores)), tuple(map(int, counts)), response.model_version)

    async def _call(self, method: str, request: Any, *, timeout_seconds: float | None = None) -> Any:  # noqa: ANN401
        """Call a method. A missing model is Unavailable, since it may be loading or being replaced."""
        try:
            return await self._replicas.call(
                lambda stub: getattr(stub, method), request, timeout_seconds=timeout_seconds
            )
        except FairleadError as error:
            if _code(error) is grpc.StatusCode.NOT_FOUND:
                raise Unavailable(f"triton has no model {self._model!r} {self._version}: {error}") from error
            raise


def _add(request: Any, name: str, array: NDArray[Any]) -> None:  # noqa: ANN401 - generated without types
    tensor = request.inputs.add(name=name, shape=array.shape)
    if array.dtype == np.object_:
        tensor.datatype = "BYTES"
        request.raw_input_contents.append(serialize_byte_tensor(array).item())
    else:
        tensor.datatype = "INT64"
        request.raw_input_contents.append(array.tobytes())


def _code(error: BaseException) -> grpc.StatusCode | None:
    cause = error.__cause__
    return cause.code() if isinstance(cause, aio.AioRpcError) else None
