"""The outermost edge of every RPC: admission, drain, parsing, and what wraps the work (`rpc_call`).

Sits between grpc.aio and the servicers. Knows nothing about messages: bodies are only parsed and, unless
`observe.access_log` is `texts`, never logged.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, closing
from functools import partial
from typing import Any, TypeAlias

import grpc
from grpc import aio

from fairlead import metrics
from fairlead.config.infrastructure import AccessLog
from fairlead.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from fairlead.rpc.status import EXCLUSIVE_START
from services.runtime.access.control import AccessControl
from services.runtime.large import in_thread_if_large
from services.runtime.rpc_call import RpcCall
from services.runtime.streams import IncomingRequests
from services.runtime.wire_limits import WireLimits, check_wire

_FULL_RETRY_SECONDS = 0.5
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
