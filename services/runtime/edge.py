"""The outermost edge of every RPC: access control, drain, error replies, metrics and the access log.

Sits between grpc.aio and the servicers. Knows nothing about messages: bodies are only parsed and, unless
`observe.access_log` is `texts`, never logged.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, closing
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self, TypeAlias

import grpc
from grpc import aio

from fairlead import metrics
from fairlead.config.infrastructure import AccessLog
from fairlead.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from fairlead.rpc.status import (
    EXCLUSIVE_START,
    MAX_REQUEST_TOKENS,
    REPLICA_LOST,
    REQUEST_ID,
    RETRY_PUSHBACK,
)
from services.runtime.access.control import (
    AccessControl,
    Caller,
    parse_token_limit,
    request_id_or_new,
    scope_of,
)
from services.runtime.error_reply import rpc_error_reply
from services.runtime.large import in_thread_if_large
from services.runtime.streams import IncomingRequests
from services.runtime.wire_limits import WireLimits, check_wire

logger = logging.getLogger(__name__)

_FULL_RETRY_SECONDS = 0.5
_SLOW_SECONDS = 30.0
"""A slower RPC is logged even if the access log is off."""
_LOGGED_CHARACTERS = 10_000
_MAX_OPEN_BYTES = 1 << 14
"""Limit on a request to a service that requires no key."""
_Context = aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class EdgeInterceptor(aio.ServerInterceptor):
    """Wraps every handler. For the `grpc.` services (health, reflection) it only bounds the requests."""

    def __init__(
        self,
        server_metrics: metrics.ServerMetrics,
        access: AccessControl,
        *,
        max_in_flight_bytes: int = 256 << 20,
        access_log: AccessLog = "auto",
    ) -> None:
        """
        Args:
            server_metrics: metrics of RPCs.
            access: authorizes callers.
            max_in_flight_bytes: limit on the size of all unary requests in flight; a single larger one is
                accepted when no other is in flight.
            access_log: whether to log each RPC, and whether with its request; `auto` means `off`.
        """
        self._metrics = server_metrics
        self._access = access
        self._access_log = access_log
        self._max_bytes = max_in_flight_bytes
        self._in_flight = 0
        self._bytes = 0
        self.wire_limits = WireLimits()
        """What a request may contain."""
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """RPCs that have started and whose response has not been handed to the transport."""
        return self._in_flight

    @property
    def is_open(self) -> bool:
        """Whether new RPCs are accepted."""
        return not self._draining.is_set()

    def refuse(self) -> None:
        """Refuse new RPCs with UNAVAILABLE from now on; RPCs in flight continue.

        An open stream finishes the requests that were read, then ends with UNAVAILABLE.
        """
        self._draining.set()

    async def wait_idle(self) -> None:
        """Wait until no RPC is in flight."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Return the handler, wrapped."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if method.startswith("/grpc."):
            return _bounded(handler)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(method, handler), response_serializer=handler.response_serializer
            )
        if handler.unary_stream is not None and inspect.isasyncgenfunction(handler.unary_stream):
            return grpc.unary_stream_rpc_method_handler(
                self._server_stream(method, handler), response_serializer=handler.response_serializer
            )
        if handler.stream_stream is not None and inspect.isasyncgenfunction(handler.stream_stream):
            return grpc.stream_stream_rpc_method_handler(
                self._stream(method, handler), response_serializer=handler.response_serializer
            )
        raise TypeError(f"{method}: a handler must be unary or an async generator of responses")

    def _unary(self, method: str, handler: _Handler) -> Callable[[bytes, _Context], Awaitable[Any]]:
        behaviour: Any = handler.unary_unary

        async def call(body: bytes, context: _Context) -> object:
            async with self._started(method, context, len(body)) as call:
                self._admit(len(body))
                async with self._access.request(call.authorize(self._access)):
                    request = call.note_request(await self._parsed(method, handler, body, context))
                    return await behaviour(request, context)

        return call

    def _server_stream(
        self, method: str, handler: _Handler
    ) -> Callable[[bytes, _Context], AsyncIterator[Any]]:
        behaviour: Any = handler.unary_stream

        async def call(body: bytes, context: _Context) -> AsyncIterator[Any]:
            async with self._started(method, context, len(body)) as call:
                self._admit(len(body))
                async with self._access.request(call.authorize(self._access)):
                    request = call.note_request(await self._parsed(method, handler, body, context))
                    async with aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            call.count_sent()
                            yield response

        return call

    def _stream(
        self, method: str, handler: _Handler
    ) -> Callable[[AsyncIterator[bytes], _Context], AsyncIterator[Any]]:
        behaviour: Any = handler.stream_stream

        async def call(bodies: AsyncIterator[bytes], context: _Context) -> AsyncIterator[Any]:
            async with self._started(method, context) as call:

                async def parse(body: bytes) -> object:
                    call.count_received()
                    return call.note_request(await self._parsed(method, handler, body, context))

                self._check_open()
                with closing(IncomingRequests(bodies, parse=parse, draining=self._draining)) as requests:
                    # The requests of a stream are counted one by one.
                    async with (
                        self._access.request(call.authorize(self._access), requests=0),
                        aclosing(behaviour(requests, context)) as responses,
                    ):
                        async for response in responses:
                            call.count_sent()
                            yield response
                    requests.check_complete()

        return call

    async def _parsed(self, method: str, handler: _Handler, body: bytes, context: _Context) -> object:
        """Parse a request, after the check of its size."""
        await in_thread_if_large(partial(check_wire, method, body, self.wire_limits), len(body))
        return _parse(handler, body, context)

    def _started(self, method: str, context: _Context, size: int = 0) -> RpcCall:
        call = RpcCall(self._metrics, method, context, self._access_log)
        self._in_flight += 1
        self._bytes += size
        self._idle.clear()
        # Called when the status has been handed to the transport, which is later than the handler's return.
        context.add_done_callback(lambda _: self._ended(size))  # type: ignore[arg-type]
        return call

    def _admit(self, size: int) -> None:
        self._check_open()
        if self._bytes > self._max_bytes and self._bytes > size:
            raise Overloaded(
                f"the requests in flight hold more than {self._max_bytes} bytes",
                retry_after_seconds=_FULL_RETRY_SECONDS,
            )

    def _check_open(self) -> None:
        if self._draining.is_set():
            raise Unavailable("the server is draining")

    def _ended(self, size: int) -> None:
        self._in_flight -= 1
        self._bytes -= size
        if self._in_flight == 0:
            self._idle.set()


class RpcCall:
    """One RPC: its caller, its status, metrics and log line; an async context manager around its work."""

    def __init__(
        self,
        server_metrics: metrics.ServerMetrics,
        method: str,
        context: _Context,
        access_log: AccessLog,
    ) -> None:
        """
        Args:
            server_metrics: metrics of RPCs.
            method: full name, such as `/fairlead.v1.RewardService/Score`.
            context: gRPC's context of the RPC.
            access_log: whether to log the RPC, and whether with its request; `auto` means `off`.
        """
        self._metrics = server_metrics
        self._method = method
        self._context = context
        self._access_log = access_log
        _, service, name = method.split("/", 2)
        self._labels = (service, name)
        self._start = time.monotonic()
        self._code: grpc.StatusCode | None = None
        self._text = ""
        # If a key is repeated, its first value counts: proxies append theirs.
        sent: dict[str, object] = dict(reversed(tuple(context.invocation_metadata() or ())))
        self._bearer = _text(sent.get("authorization"))
        self._limit = _text(sent.get(MAX_REQUEST_TOKENS))
        self._caller = Caller(request_id=request_id_or_new(_text(sent.get(REQUEST_ID))))
        server_metrics.started.labels(*self._labels).inc()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Turn an exception of the work into the status of the RPC, then count and log the RPC."""
        try:
            if error is None:
                self._context.set_trailing_metadata(((REQUEST_ID, self._caller.request_id),))
            elif isinstance(error, asyncio.CancelledError | GeneratorExit):
                self._set_cancelled()
            elif isinstance(error, Exception):
                await self._fail(error)
        finally:
            self._finish()

    def authorize(self, access: AccessControl) -> Caller:
        """Return the caller, after authentication and the check of its scope.

        Raises:
            Unauthenticated: if the key is missing or invalid.
            PermissionDenied: if the key does not allow this method.
            InvalidInput: if the sender's token limit is not a number.
        """
        self._caller.max_request_tokens = parse_token_limit(self._limit)
        access.authorize(self._caller, bearer=self._bearer, scope=scope_of(self._method))
        return self._caller

    def note_request(self, request: object) -> object:
        """Keep the request's text for the log, if texts are logged; return the request."""
        if self._access_log == "texts":
            self._text = " ".join(str(request).split())[:_LOGGED_CHARACTERS]
        return request

    def count_received(self) -> None:
        """Count a message received on a stream."""
        self._metrics.received.labels(*self._labels).inc()

    def count_sent(self) -> None:
        """Count a message sent on a stream."""
        self._metrics.sent.labels(*self._labels).inc()

    async def _fail(self, error: Exception) -> NoReturn:
        """End the RPC with the status of an error. Does not return."""
        if isinstance(error, aio.AbortError):
            raise error
        reply = rpc_error_reply(error, method=self._method, peer=self._context.peer())
        self._code = reply.code
        trailers: tuple[tuple[str, str], ...] = ((REQUEST_ID, self._caller.request_id),)
        if reply.retry_after_seconds is not None:
            trailers += ((RETRY_PUSHBACK, str(max(1, round(reply.retry_after_seconds * 1000)))),)
        if reply.replica_lost:
            trailers += ((REPLICA_LOST, "1"),)
        await self._context.abort(reply.code, reply.message, trailers)

    def _set_cancelled(self) -> None:
        """Record that the caller cancelled, or that its deadline passed."""
        remaining = self._context.time_remaining()
        late = remaining is not None and remaining <= 0
        self._code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED

    def _finish(self) -> None:
        """Count, time and log the RPC."""
        code = self._code or _known_code(self._context)
        seconds = time.monotonic() - self._start
        self._metrics.handled.labels(*self._labels, code.name).inc()
        self._metrics.seconds.labels(*self._labels).observe(seconds)
        logged = self._access_log in ("plain", "texts") or seconds > _SLOW_SECONDS
        level = logging.INFO if logged else logging.DEBUG
        if logger.isEnabledFor(level):
            fields: dict[str, object] = {
                "method": self._method,
                "code": code.name,
                "key": self._caller.key_id,
                "request_id": self._caller.request_id,
                "tokens": self._caller.num_tokens,
                "seconds": round(seconds, 4),
            }
            if self._text:
                fields["request"] = self._text
            logger.log(level, "rpc %s %s", fields["method"], fields["code"], extra=fields)


def _bounded(handler: _Handler) -> _Handler:
    """Return the handler of an open service, which refuses large requests unparsed."""
    parse: Any = handler.request_deserializer
    behaviour: Any = handler.unary_unary or handler.unary_stream
    if behaviour is None or parse is None:
        return handler

    async def checked(body: bytes, context: _Context) -> object:
        if len(body) > _MAX_OPEN_BYTES:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"request: got {len(body)} bytes, allowed: at most {_MAX_OPEN_BYTES}",
            )
        try:
            return parse(body)
        except Exception:  # noqa: BLE001 - any error of the parser is an error of the caller
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request: got bytes that cannot be parsed")

    async def call(body: bytes, context: _Context) -> object:
        return await behaviour(await checked(body, context), context)

    async def stream(body: bytes, context: _Context) -> AsyncIterator[object]:
        async for response in behaviour(await checked(body, context), context):
            yield response

    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(call, response_serializer=handler.response_serializer)
    return grpc.unary_stream_rpc_method_handler(stream, response_serializer=handler.response_serializer)


def deadline(context: _Context) -> float | None:
    """Return the caller's deadline on the clock of `time.monotonic`; None if it has none."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def start_notice(context: _Context) -> Callable[[], None]:
    """Return a function that announces to the caller that its exclusive request starts; thread-safe.

    If the connection breaks before the caller has the notice, its request did not kill the replica.
    """
    loop = asyncio.get_running_loop()

    def send() -> None:
        notice = context.send_initial_metadata(((EXCLUSIVE_START, "1"),))
        asyncio.run_coroutine_threadsafe(notice, loop)

    return send


def _parse(handler: _Handler, body: bytes, context: _Context) -> object:
    """Parse a request, unless its deadline has already passed."""
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlineExceeded("the deadline passed before the work started")
    if handler.request_deserializer is None:
        return body
    try:
        return handler.request_deserializer(body)
    except Exception as error:
        raise InvalidInput(
            "request",
            got=f"{len(body)} bytes ({type(error).__name__})",
            allowed="a serialized request of this RPC",
        ) from error


def _known_code(context: _Context) -> grpc.StatusCode:
    code: object = context.code()
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.OK


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
