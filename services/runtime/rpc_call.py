"""What surrounds the work of an RPC: the caller's rights, the status, metrics and the access log.

The edge creates an `RpcCall` for each RPC. A servicer whose RPC holds several requests runs each of them with
`answer_part`, as an RPC of its own. Knows nothing about messages: they are only logged, if
`observe.access_log` is `texts`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import grpc
from grpc import aio

from fairlead import metrics, tracing
from fairlead.config.infrastructure import AccessLog
from fairlead.rpc.status import MAX_REQUEST_TOKENS, REPLICA_LOST, REQUEST_ID, RETRY_PUSHBACK, TRACEPARENT
from services.runtime.access.control import (
    AccessControl,
    Caller,
    parse_token_limit,
    request_id_or_new,
    scope_of,
)
from services.runtime.error_reply import ErrorReply, rpc_error_reply

logger = logging.getLogger(__name__)

_SLOW_SECONDS = 30.0
"""A slower RPC is logged even if the access log is off."""
_LOGGED_CHARACTERS = 10_000
_Context = aio.ServicerContext[Any, Any]
_T = TypeVar("_T")


class _Record:
    """Counts, times and logs one RPC, or one request that counts as one."""

    def __init__(
        self, server_metrics: metrics.ServerMetrics, method: str, caller: Caller, access_log: AccessLog
    ) -> None:
        self._metrics = server_metrics
        self._method = method
        self._caller = caller
        self._access_log = access_log
        _, service, name = method.split("/", 2)
        self.labels = server_metrics.labels(service, name)
        self._start = time.monotonic()
        self._start_ns = time.time_ns()
        self._span = tracing.NO_SPAN
        self._text = ""
        server_metrics.started.labels(*self.labels).inc()

    def trace(self, traceparent: str | None, *, within: bool = False) -> None:
        """Begin its span; see `tracing.serve`."""
        _, service, name = self.labels
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": name,
            "fairlead.request_id": self._caller.request_id,
        }
        self._span = tracing.serve(
            name, traceparent, start_ns=self._start_ns, within=within, attributes=attributes
        )

    def note_request(self, request: object) -> None:
        """Keep the request's text for the log, if texts are logged."""
        if self._access_log == "texts":
            self._text = " ".join(str(request).split())[:_LOGGED_CHARACTERS]

    def finish(self, code: grpc.StatusCode) -> None:
        """Count, time and log it."""
        seconds = time.monotonic() - self._start
        self._metrics.handled.labels(*self.labels, code.name).inc()
        measured = self._metrics.seconds.labels(*self.labels)
        measured.observe(seconds, exemplar=tracing.exemplar_of(self._span))
        if self._span.is_recorded:
            self._span.set(
                **{"rpc.grpc.status_code": _number(code), "fairlead.tokens": self._caller.num_tokens}
            )
            if code is not grpc.StatusCode.OK:
                self._span.fail(code.name)
            self._span.end()
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
        self._access: AccessControl | None = None
        self._code: grpc.StatusCode | None = None
        self.peer = context.peer()
        """Address of the caller. Kept, because asking gRPC's context after the RPC ended is a crash."""
        # If a key is repeated, its first value counts: proxies append theirs.
        sent: dict[str, object] = dict(reversed(tuple(context.invocation_metadata() or ())))
        self._bearer = _text(sent.get("authorization"))
        self._limit = _text(sent.get(MAX_REQUEST_TOKENS))
        self._traceparent = _text(sent.get(TRACEPARENT))
        self._caller = Caller(request_id=request_id_or_new(_text(sent.get(REQUEST_ID))))
        self._record = _Record(server_metrics, method, self._caller, access_log)

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
                self._code = _cancelled(self._context)
            elif isinstance(error, Exception):
                await self._fail(error)
        finally:
            self._record.finish(self._code or _known_code(self._context))
            if self._access is not None:
                self._access.count_tokens(self._caller)

    def authorize(self, access: AccessControl) -> Caller:
        """Return the caller, after authentication and the check of its scope.

        Raises:
            Unauthenticated: if the key is missing or invalid.
            PermissionDenied: if the key does not allow this method.
            InvalidInput: if the sender's token limit is not a number.
        """
        self._caller.max_request_tokens = parse_token_limit(self._limit)
        access.authorize(self._caller, bearer=self._bearer, scope=scope_of(self._method))
        self._access = access
        # A caller without a valid key makes no spans.
        self._record.trace(self._traceparent)
        _CALL.set(self)
        return self._caller

    def note_request(self, request: object) -> object:
        """Keep the request's text for the log, if texts are logged; return the request."""
        self._record.note_request(request)
        return request

    def count_received(self) -> None:
        """Count a message received on a stream."""
        self._metrics.received.labels(*self._record.labels).inc()

    def count_sent(self) -> None:
        """Count a message sent on a stream."""
        self._metrics.sent.labels(*self._record.labels).inc()

    async def answer_part(
        self,
        work: Callable[[], Awaitable[_T]],
        *,
        method: str,
        request: object,
        request_id: str,
        is_counted: bool,
        traceparent: str = "",
    ) -> _T | ErrorReply:
        """Run one request of this RPC, which holds several, as an RPC of its own; return its result or error.

        It is counted, timed, logged and limited as an RPC of `method`. Runs in a task of its own, whose
        `caller()` is then that of the request.

        Args:
            work: answers the request.
            method: full name of the RPC that takes only this request.
            request: the request, for the log.
            request_id: identifies it in logs; a new id does if it is not a valid one.
            is_counted: whether the caller's limits count it already, as the RPC itself: true for the first.
            traceparent: the span that the caller sent with it; without one it is part of that of the RPC.
        """
        assert self._access is not None
        part = self._caller.part(request_id)
        record = _Record(self._metrics, method, part, self._access_log)
        record.note_request(request)
        record.trace(traceparent, within=True)
        code = grpc.StatusCode.OK
        try:
            async with self._access.part(part, is_counted=is_counted):
                return await work()
        except asyncio.CancelledError:
            code = _cancelled(self._context)
            raise
        except Exception as error:  # noqa: BLE001 - the edge of one request; the others continue
            reply = rpc_error_reply(error, method=method, peer=self.peer)
            code = reply.code
            return reply
        finally:
            self._caller.num_tokens += part.num_tokens
            record.finish(code)

    async def _fail(self, error: Exception) -> NoReturn:
        """End the RPC with the status of an error. Does not return."""
        if isinstance(error, aio.AbortError):
            raise error
        reply = rpc_error_reply(error, method=self._method, peer=self.peer)
        self._code = reply.code
        trailers: tuple[tuple[str, str], ...] = ((REQUEST_ID, self._caller.request_id),)
        if reply.retry_after_seconds is not None:
            trailers += ((RETRY_PUSHBACK, str(max(1, round(reply.retry_after_seconds * 1000)))),)
        if reply.replica_lost:
            trailers += ((REPLICA_LOST, "1"),)
        await self._context.abort(reply.code, reply.message, trailers)


_CALL: ContextVar[RpcCall] = ContextVar("rpc_call")


def current_call() -> RpcCall:
    """Return the RPC that this task, or the one that created it, works for."""
    return _CALL.get()


def _cancelled(context: _Context) -> grpc.StatusCode:
    """Return the status of work that the caller cancelled, or whose deadline passed."""
    remaining = context.time_remaining()
    late = remaining is not None and remaining <= 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED


def _known_code(context: _Context) -> grpc.StatusCode:
    code: object = context.code()
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.OK


def _number(code: grpc.StatusCode) -> int:
    number: int = code.value[0]
    return number


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
