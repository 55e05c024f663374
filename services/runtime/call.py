"""One RPC at the edge: who calls, how it ended, what is counted and logged of it.

Beneath the interceptor. Knows no message: what was asked is logged only where that is switched on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
from grpc import aio

from fairlead import metrics
from fairlead.config.infrastructure import AccessLog
from fairlead.rpc.status import MAX_REQUEST_TOKENS, REQUEST_ID, RETRY_PUSHBACK
from services.runtime.access import Access, Caller, checked_limit, checked_request_id
from services.runtime.error_reply import rpc_error_reply
from services.runtime.scopes import scope_of

logger = logging.getLogger(__name__)

_SLOW_SECONDS = 30.0
_LOGGED_CHARACTERS = 10_000
_Context = aio.ServicerContext[Any, Any]


class Call:
    """One RPC's bookkeeping, around its work: an async context manager that tells the caller how it ended."""

    def __init__(
        self,
        server_metrics: metrics.ServerMetrics,
        method: str,
        context: _Context,
        access_log: AccessLog,
    ) -> None:
        """
        Args:
            server_metrics: where it is counted.
            method: such as `/fairlead.v1.RewardService/Score`.
            context: of gRPC.
            access_log: whether it leaves a line, and whether that holds what was asked; `auto` is `off`.
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
        # The first of each counts: what a proxy in between has added stands behind.
        sent: dict[str, object] = dict(reversed(tuple(context.invocation_metadata() or ())))
        self._bearer = _text(sent.get("authorization"))
        self._limit = _text(sent.get(MAX_REQUEST_TOKENS))
        self._caller = Caller(request_id=checked_request_id(_text(sent.get(REQUEST_ID))))
        server_metrics.started.labels(*self._labels).inc()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The outermost edge: whatever the work raised becomes a status."""
        try:
            if error is None:
                self._answer()
            elif isinstance(error, asyncio.CancelledError | GeneratorExit):
                self._leave()
            elif isinstance(error, Exception):
                await self._fail(error)
        finally:
            self._finish()

    def identify(self, access: Access) -> Caller:
        """Who calls.

        Raises:
            Unauthenticated: for no key or a wrong one.
            PermissionDenied: for a key that does not allow this method.
            InvalidInput: for a limit that is none.
        """
        self._caller.max_request_tokens = checked_limit(self._limit)
        access.identify(self._caller, bearer=self._bearer, scope=scope_of(self._method))
        return self._caller

    def asked(self, request: object) -> object:
        """Takes note of a request where texts are logged; hands it on."""
        if self._access_log == "texts":
            self._text = " ".join(str(request).split())[:_LOGGED_CHARACTERS]
        return request

    def received(self) -> None:
        """A message of a stream has come."""
        self._metrics.received.labels(*self._labels).inc()

    def sent(self) -> None:
        """A message of a stream goes."""
        self._metrics.sent.labels(*self._labels).inc()

    def _answer(self) -> None:
        """The RPC went well: the answer says under which id it stands in the log."""
        self._context.set_trailing_metadata(((REQUEST_ID, self._caller.request_id),))

    async def _fail(self, error: Exception) -> NoReturn:
        """Ends the RPC with the error's status. Does not return."""
        if isinstance(error, aio.AbortError):
            raise error
        what = rpc_error_reply(error, method=self._method, peer=self._context.peer())
        self._code = what.code
        trailers: tuple[tuple[str, str], ...] = ((REQUEST_ID, self._caller.request_id),)
        if what.retry_after_seconds is not None:
            trailers += ((RETRY_PUSHBACK, str(max(1, round(what.retry_after_seconds * 1000)))),)
        await self._context.abort(what.code, what.message, trailers)

    def _leave(self) -> None:
        """The caller cancelled, or its deadline passed."""
        remaining = self._context.time_remaining()
        late = remaining is not None and remaining <= 0
        self._code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED

    def _finish(self) -> None:
        """Counts and times the RPC, however it ended."""
        code = self._code or _known_code(self._context)
        seconds = time.monotonic() - self._start
        self._metrics.handled.labels(*self._labels, code.name).inc()
        self._metrics.seconds.labels(*self._labels).observe(seconds)
        said = self._access_log in ("plain", "texts") or seconds > _SLOW_SECONDS
        level = logging.INFO if said else logging.DEBUG
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
            logger.log(level, "rpc", extra=fields)


def _known_code(context: _Context) -> grpc.StatusCode:
    code: object = context.code()
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.OK


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
