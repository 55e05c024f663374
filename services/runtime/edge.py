"""The outermost edge of every RPC: errors become statuses, calls are known, counted, timed and logged.

Stands between grpc.aio and the servicers. Knows no message: bodies pass through unread and are never logged.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, closing
from typing import Any, TypeAlias

import grpc
from grpc import aio

from fairlead import metrics
from fairlead.config.infrastructure import AccessLog
from fairlead.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from services.runtime.access import Access
from services.runtime.call import Call
from services.runtime.incoming import Incoming

_FULL_SECONDS = 0.5
_Context = aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Edge(aio.ServerInterceptor):
    """Wraps every handler outside the `grpc.` services (health, reflection)."""

    def __init__(
        self,
        server_metrics: metrics.ServerMetrics,
        access: Access,
        *,
        max_in_flight_bytes: int = 256 << 20,
        access_log: AccessLog = "auto",
    ) -> None:
        """
        Args:
            server_metrics: where calls are counted.
            access: who may call.
            max_in_flight_bytes: of all requests in flight but streams; a larger one is taken alone.
            access_log: whether a call leaves a line, and whether that holds what was asked; `auto` is `off`.
        """
        self._metrics = server_metrics
        self._access = access
        self._access_log = access_log
        self._max_bytes = max_in_flight_bytes
        self._in_flight = 0
        self._bytes = 0
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """RPCs begun whose answer is not on its way yet."""
        return self._in_flight

    @property
    def is_open(self) -> bool:
        """Whether new RPCs are taken."""
        return not self._draining.is_set()

    def refuse(self) -> None:
        """From now on new RPCs are answered with UNAVAILABLE; those in flight go on.

        Of a stream that a client still sends on, what was read is answered, then it ends with UNAVAILABLE.
        """
        self._draining.set()

    async def wait_idle(self) -> None:
        """Returns when no RPC is in flight."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """The handler, wrapped."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith("/grpc."):
            return handler
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(method, handler), response_serializer=handler.response_serializer
            )
        if handler.unary_stream is not None and inspect.isasyncgenfunction(handler.unary_stream):
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler), response_serializer=handler.response_serializer
            )
        if handler.stream_stream is not None and inspect.isasyncgenfunction(handler.stream_stream):
            return grpc.stream_stream_rpc_method_handler(
                self._both(method, handler), response_serializer=handler.response_serializer
            )
        raise TypeError(f"{method}: only unary methods and async generators that stream answers are served")

    def _unary(self, method: str, handler: _Handler) -> Callable[[bytes, _Context], Awaitable[Any]]:
        behaviour: Any = handler.unary_unary

        async def call(body: bytes, context: _Context) -> object:
            async with self._begun(method, context, len(body)) as call:
                self._admit(len(body))
                async with self._access.working(call.identify(self._access)):
                    request = call.asked(_parsed(handler, body, context))
                    return await behaviour(request, context)

        return call

    def _stream(self, method: str, handler: _Handler) -> Callable[[bytes, _Context], AsyncIterator[Any]]:
        behaviour: Any = handler.unary_stream

        async def call(body: bytes, context: _Context) -> AsyncIterator[Any]:
            async with self._begun(method, context, len(body)) as call:
                self._admit(len(body))
                async with self._access.working(call.identify(self._access)):
                    request = call.asked(_parsed(handler, body, context))
                    async with aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            call.sent()
                            yield response

        return call

    def _both(
        self, method: str, handler: _Handler
    ) -> Callable[[AsyncIterator[bytes], _Context], AsyncIterator[Any]]:
        behaviour: Any = handler.stream_stream

        async def call(bodies: AsyncIterator[bytes], context: _Context) -> AsyncIterator[Any]:
            async with self._begun(method, context) as call:

                def parse(body: bytes) -> object:
                    call.received()
                    return call.asked(_parsed(handler, body, context))

                self._check_open()
                with closing(Incoming(bodies, parse=parse, closing=self._draining)) as requests:
                    # What the stream brings is counted request by request.
                    async with (
                        self._access.working(call.identify(self._access), requests=0),
                        aclosing(behaviour(requests, context)) as responses,
                    ):
                        async for response in responses:
                            call.sent()
                            yield response
                    requests.check_whole()

        return call

    def _begun(self, method: str, context: _Context, size: int = 0) -> Call:
        call = Call(self._metrics, method, context, self._access_log)
        self._in_flight += 1
        self._bytes += size
        self._idle.clear()
        # Called when the status has been handed to the transport, not merely when the handler returned.
        context.add_done_callback(lambda _: self._ended(size))  # type: ignore[arg-type]
        return call

    def _admit(self, size: int) -> None:
        self._check_open()
        if self._bytes > self._max_bytes and self._bytes > size:
            raise Overloaded(
                f"the requests in flight hold more than {self._max_bytes} bytes",
                retry_after_seconds=_FULL_SECONDS,
            )

    def _check_open(self) -> None:
        if self._draining.is_set():
            raise Unavailable("the server is draining")

    def _ended(self, size: int) -> None:
        self._in_flight -= 1
        self._bytes -= size
        if self._in_flight == 0:
            self._idle.set()


def _parsed(handler: _Handler, body: bytes, context: _Context) -> object:
    """The request; bytes that are no message are the caller's mistake, work out of time is not started."""
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlineExceeded("the deadline had passed before the work was started")
    if handler.request_deserializer is None:
        return body
    try:
        return handler.request_deserializer(body)
    except Exception as error:
        raise InvalidInput(
            "request", got=f"{len(body)} bytes ({type(error).__name__})", allowed="a message of this RPC"
        ) from error


def deadline(context: _Context) -> float | None:
    """When the caller stops waiting, on the clock of `time.monotonic`; None if it never does."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
