"""Send the Generate calls to one replica that begin together in one GenerateBatch call.

Sits between `AsyncPolicyClient` and the stub of a replica, below retries and hedging: each request has been
given its replica, and gets its own response, or the error that a Generate call would have had. A service
without the method gets Generate calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import grpc
from grpc import aio

from fairlead.errors import CorruptData
from fairlead.rpc.credentials import Metadata
from fairlead.rpc.status import REPLICA_LOST, REQUEST_ID, RETRY_PUSHBACK, TRACEPARENT, is_too_large
from fairlead.tracing import SpanContext
from fairlead.v1 import policy_service_pb2 as pb
from fairlead.v1 import policy_service_pb2_grpc as pb_grpc

MAX_REQUESTS = 32
"""Limit on the requests of a call; the service's is 64."""
MAX_BYTES = 1 << 20
"""Limit on their size together; a larger request has a call of its own."""
_GATHER_SECONDS = 0.002
"""A request waits this long for others."""
_SAME_DEADLINE_SECONDS = 0.05
"""Requests whose deadlines are this close share that of the call."""
_WITHOUT_SECONDS = 60.0
"""How long a replica without the method gets Generate calls, before it is tried again: it may be upgraded."""

_NO_REQUESTS_FAULT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
"""Statuses of a call that no request causes; any other may be the fault of one of them."""
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class _SendSingly(Exception):
    """The call failed as a whole, maybe for another request: this one is sent in a Generate call."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request whose response is not there yet."""

    request: pb.GenerateRequest
    until: float
    """Its deadline, on the clock of `time.monotonic`."""
    response: asyncio.Future[pb.GenerateResponse]

    def fail(self, error: Exception) -> None:
        self.response.set_exception(error)
        self.response.exception()  # its caller may be cancelled before it sees the error


@dataclass(slots=True, eq=False)
class _Batch:
    """Requests that travel together."""

    metadata: Metadata | None
    waiting: list[_Waiting] = field(default_factory=list)
    num_bytes: int = 0
    call: asyncio.Task[None] | None = None
    given_up: bool = False
    """Some caller was cancelled: the replica may still work for it when the others have their answers."""

    def add(self, waiting: _Waiting, num_bytes: int) -> None:
        self.waiting.append(waiting)
        self.num_bytes += num_bytes

    def unanswered(self) -> list[_Waiting]:
        return [each for each in self.waiting if not each.response.done()]

    def give_up(self) -> None:
        """Note that a caller was cancelled, and end the call if nobody waits for it any longer."""
        self.given_up = True
        if self.call is not None and not self.unanswered():
            self.call.cancel()


class GenerateBatches:
    """The Generate method of one replica's stub; requests that begin together share a call."""

    path = "/fairlead.v1.PolicyService/Generate"
    """The method that a request counts as in metrics."""

    def __init__(self, stub: pb_grpc.PolicyServiceAsyncStub, *, on_missing: Callable[[], None]) -> None:
        """
        Args:
            stub: of the replica.
            on_missing: called when the replica does not have the method.
        """
        self._stub = stub
        self._on_missing = on_missing
        self._next: dict[Metadata | None, _Batch] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._without_until = 0.0

    async def __call__(
        self, request: pb.GenerateRequest, /, *, timeout: float, metadata: Metadata | None
    ) -> pb.GenerateResponse:
        """Return the response to a request.

        Args:
            request: the message, not exclusive; its `timeout_seconds` is set.
            timeout: deadline in seconds.
            metadata: of the call; only requests with the same share one.

        Raises:
            AioRpcError: as Generate does.
            CorruptData: if the service answers something else.
        """
        until = time.monotonic() + timeout
        if time.monotonic() < self._without_until:
            return await self._stub.Generate(request, timeout=timeout, metadata=_traced(request, metadata))
        request.timeout_seconds = timeout
        waiting = _Waiting(request, until, asyncio.get_running_loop().create_future())
        batch = self._add(waiting, metadata)
        try:
            return await waiting.response
        except asyncio.CancelledError:
            batch.give_up()
            raise
        except _SendSingly:
            left = until - time.monotonic()
            return await self._stub.Generate(request, timeout=left, metadata=_traced(request, metadata))
        except aio.UsageError as error:
            # Certificates have changed meanwhile: the next attempt uses the new connection.
            raise _error_of(grpc.StatusCode.UNAVAILABLE, f"the connection was replaced: {error}") from error

    def _add(self, waiting: _Waiting, metadata: Metadata | None) -> _Batch:
        """Add a request to the next call with this metadata; return that call's requests."""
        num_bytes = waiting.request.ByteSize()
        batch = self._next.get(metadata)
        if batch is not None and batch.num_bytes + num_bytes > MAX_BYTES:
            self._send(batch)
            batch = None
        if batch is None:
            batch = self._next[metadata] = _Batch(metadata)
            asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._send, batch)
        batch.add(waiting, num_bytes)
        if len(batch.waiting) == MAX_REQUESTS:
            self._send(batch)
        return batch

    def _send(self, batch: _Batch) -> None:
        """Begin the call, unless it has begun."""
        if self._next.get(batch.metadata) is not batch:
            return
        del self._next[batch.metadata]
        sent = batch.unanswered()
        if len(sent) == 1:
            sent[0].fail(_SendSingly())
        elif sent:
            batch.call = asyncio.create_task(self._answer(batch, sent), name="generate-batch")
            self._calls.add(batch.call)
            batch.call.add_done_callback(self._calls.discard)

    async def _answer(self, batch: _Batch, sent: Sequence[_Waiting]) -> None:
        """Make the call, and set the response or the error of every request."""
        until = max(each.until for each in sent)
        timers = [
            asyncio.get_running_loop().call_later(each.until - time.monotonic(), _expire, each)
            for each in sent
            if each.until < until - _SAME_DEADLINE_SECONDS
        ]
        try:
            call = self._stub.GenerateBatch(
                pb.GenerateBatchRequest(requests=[each.request for each in sent]),
                timeout=until - time.monotonic(),
                metadata=_untraced(sent[0].request, batch.metadata),
            )
            await self._read(call, batch, sent)
        except aio.AioRpcError as error:
            self._fail_call(batch, error)
        except asyncio.CancelledError:
            for each in batch.unanswered():
                each.response.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - raised to the callers
            _fail(batch, error)
        finally:
            for timer in timers:
                timer.cancel()

    async def _read(
        self,
        call: aio.UnaryStreamCall[pb.GenerateBatchRequest, pb.GenerateBatchResponse],
        batch: _Batch,
        sent: Sequence[_Waiting],
    ) -> None:
        """Set responses and errors until the call ends, or nobody waits for it any longer.

        Raises:
            CorruptData: if the service answers something else, or not every request.
        """
        try:
            async for message in call:
                for answer in message.answers:
                    _set_answer(answer, sent)
                if batch.given_up and not batch.unanswered():
                    return
        finally:
            call.cancel()
        if batch.unanswered():
            raise CorruptData("policy: the stream of a GenerateBatch ended before all answers")

    def _fail_call(self, batch: _Batch, error: aio.AioRpcError) -> None:
        code = error.code()
        if code is grpc.StatusCode.UNIMPLEMENTED:
            self._on_missing()
            self._without_until = time.monotonic() + _WITHOUT_SECONDS
        singly = code not in _NO_REQUESTS_FAULT or is_too_large(error)
        for each in batch.unanswered():
            each.fail(_SendSingly() if singly else _copy(error))


def _traced(request: pb.GenerateRequest, metadata: Metadata | None) -> Metadata | None:
    """Return the metadata of a call with one request."""
    if not request.traceparent:
        return metadata
    return (*(metadata or ()), (TRACEPARENT, request.traceparent))


def _untraced(request: pb.GenerateRequest, metadata: Metadata | None) -> Metadata | None:
    """Return the metadata of a call with several requests, each of which has a span of its own: the call has
    none.
    """
    context = SpanContext.parse(request.traceparent)
    if context is None:
        return metadata
    return (*(metadata or ()), (TRACEPARENT, replace(context, is_sampled=False).traceparent))


def _expire(waiting: _Waiting) -> None:
    if not waiting.response.done():
        waiting.fail(_error_of(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))


def _error_of(code: grpc.StatusCode, details: str) -> aio.AioRpcError:
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details)


def _set_answer(answer: pb.GenerateBatchAnswer, sent: Sequence[_Waiting]) -> None:
    """Set the response or the error of one request.

    Raises:
        CorruptData: if there is no such request, or neither response nor error.
    """
    if not 0 <= answer.index < len(sent) or answer.WhichOneof("outcome") is None:
        raise CorruptData(f"policy: received an answer without content, or to unknown request {answer.index}")
    waiting = sent[answer.index]
    if waiting.response.done():
        return  # its caller was cancelled
    if answer.HasField("response"):
        waiting.response.set_result(answer.response)
    else:
        waiting.fail(_error(answer.error, waiting.request.request_id))


def _error(error: pb.GenerateBatchError, request_id: str) -> aio.AioRpcError:
    """Return the error that a Generate call would have raised; the request id says that it was answered."""
    trailers = [(REQUEST_ID, request_id)]
    if error.retry_after_seconds > 0:
        trailers.append((RETRY_PUSHBACK, str(max(1, round(error.retry_after_seconds * 1000)))))
    if error.replica_lost:
        trailers.append((REPLICA_LOST, "1"))
    code = _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(*trailers), error.message)


def _copy(error: aio.AioRpcError) -> aio.AioRpcError:
    """Return the same error: each of several callers gets one of its own, as each adds its traceback."""
    return aio.AioRpcError(
        error.code(),
        error.initial_metadata(),
        error.trailing_metadata(),
        error.details(),
        error.debug_error_string(),
    )


def _fail(batch: _Batch, error: Exception) -> None:
    for each in batch.unanswered():
        each.fail(error)
