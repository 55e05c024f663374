"""The outermost edge of every HTTP request: who calls, limits, deadline, cancellation, metrics, its log.

Between uvicorn and the app (ASGI). It reads the whole body, within the limits, before the app begins; knows
no dialect but for how errors are said.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fairlead import metrics
from fairlead.config.infrastructure import AccessLog
from fairlead.config.serving import GatewaySection
from fairlead.errors import DeadlineExceeded, Overloaded, PermissionDenied, Unauthenticated
from fairlead.rpc.status import REQUEST_ID
from services.gateway import failures
from services.gateway.body import decompressed
from services.gateway.call import HttpCall
from services.gateway.failures import TooLarge
from services.gateway.scopes import need_of
from services.runtime.access import Access, Caller

logger = logging.getLogger(__name__)
access = logging.getLogger("services.gateway.access")

_QUIET = ("/healthz", "/readyz", "/metrics")
"""Asked all the time by machines: counted, not logged."""
_LOGGED_BYTES = 4_096
_DISCARDED_BYTES = 64 << 20
_DISCARD_SECONDS = 2.0
_EARLY = (TooLarge, Unauthenticated, PermissionDenied, Overloaded)
"""May be raised before the body was read."""
_CLIENT_CLOSED = 499
"""What the log says of a caller that left; nginx's number, never sent."""


class HttpEdge:
    """An ASGI app around another."""

    def __init__(
        self,
        app: ASGIApp,
        section: GatewaySection,
        counts: metrics.GatewayMetrics,
        access: Access,
        *,
        access_log: AccessLog = "auto",
    ) -> None:
        """
        Args:
            app: what does the work.
            section: limits.
            counts: where requests are counted.
            access: who may call.
            access_log: whether a request leaves a line, and whether that holds its body; `auto` is `plain`.
        """
        self._app = app
        self._access = access
        self._access_log = access_log
        self._section = section
        self._counts = counts
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        self._in_flight += 1
        self._counts.in_flight.set(self._in_flight)
        try:
            await self._serve(exchange, scope)
        except asyncio.CancelledError:
            exchange.cut_off()
            raise
        except Exception as error:  # noqa: BLE001 - the outermost edge
            if isinstance(error, _EARLY):
                await exchange.discard()
            await exchange.fail(error)
        finally:
            self._in_flight -= 1
            self._counts.in_flight.set(self._in_flight)
            self._count(exchange, scope)

    async def _serve(self, exchange: _Exchange, scope: Scope) -> None:
        exchange.call = HttpCall.of(scope["headers"], timeout_seconds=self._section.timeout_seconds)
        exchange.call.store_in(scope)
        if self._in_flight > self._section.max_in_flight and scope["path"] not in _QUIET:
            raise Overloaded(f"{self._section.max_in_flight} requests are in flight", retry_after_seconds=1.0)
        exchange.caller = Caller(exchange.call.request_id)
        bearer = exchange.call.authorization
        self._access.identify(exchange.caller, bearer=bearer, scope=need_of(scope["path"]))
        async with self._access.working(exchange.caller):
            try:
                async with asyncio.timeout(exchange.call.remaining()):
                    await exchange.read(limit=self._section.max_body_bytes)
            except TimeoutError:
                raise DeadlineExceeded("the deadline passed before the body had come") from None
            await exchange.run(self._app)

    def _count(self, exchange: _Exchange, scope: Scope) -> None:
        seconds = time.monotonic() - exchange.started
        dialect = failures.dialect(scope["path"])
        self._counts.requests.labels(dialect=dialect, status=str(exchange.status)).inc()
        self._counts.seconds.labels(dialect=dialect).observe(seconds)
        if self._access_log == "off" or scope["path"] in _QUIET or not access.isEnabledFor(logging.INFO):
            return
        fields: dict[str, object] = {
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": exchange.status,
            "seconds": round(seconds, 4),
            "request_bytes": len(exchange.body),
            "response_bytes": exchange.sent_bytes,
            "peer": (scope.get("client") or ("?",))[0],
            "request_id": exchange.request_id,
            "key": exchange.caller.key_id,
            "tokens": exchange.caller.num_tokens,
        }
        if self._access_log == "texts":
            fields["body"] = exchange.body[:_LOGGED_BYTES].decode(errors="replace")
        access.info("%s %s %d", fields["method"], fields["path"], exchange.status, extra=fields)


class _Exchange:
    """One request and what has been sent of its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._gone = asyncio.Event()
        self.started = time.monotonic()
        self.call: HttpCall | None = None
        self.caller = Caller("")
        self.body = b""
        self.status = _CLIENT_CLOSED
        self.sent_bytes = 0
        self.begun = False
        self.is_read = False

    @property
    def request_id(self) -> str:
        """The caller's name for it; empty if the headers could not be read."""
        return self.call.request_id if self.call is not None else ""

    async def read(self, *, limit: int) -> None:
        """Takes the body.

        Raises:
            TooLarge: it is more than the limit; the rest is not read.
        """
        for name, value in self._scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > limit:
                raise _too_large(int(value), limit)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone.set()
                return
            size += len(message.get("body", b""))
            if size > limit:
                raise _too_large(size, limit)
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        self.is_read = True
        self.body = b"".join(parts)
        encoding = (
            dict(self._scope["headers"]).get(b"content-encoding", b"identity").decode("latin-1").lower()
        )
        if encoding != "identity":
            self.body = await asyncio.to_thread(decompressed, self.body, encoding, limit=limit)

    async def discard(self) -> None:
        """Reads some more for nothing: many callers read no answer before they have sent everything."""
        if self.is_read:
            return
        left = _DISCARDED_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    async def run(self, app: ASGIApp) -> None:
        """The app's work; it is cancelled when the caller leaves."""
        if self._gone.is_set():
            return
        work = asyncio.ensure_future(app(self._scope, self._replay(), self.send))
        watch = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        finally:
            left = not work.done()
            for task in (work, watch):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
            if left:
                await asyncio.wait((work,))
        if left and work.cancelled():
            return
        work.result()

    def _replay(self) -> Receive:
        given = False

        async def receive() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": self.body, "more_body": False}
            await self._gone.wait()
            return {"type": "http.disconnect"}

        return receive

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()

    async def send(self, message: Message) -> None:
        """Passes a part of the response on, with the request's id."""
        if message["type"] == "http.response.start":
            self.begun = True
            self.status = message["status"]
            extra = [(REQUEST_ID.encode(), self.request_id.encode())] if self.request_id else []
            if not self.is_read:
                # What is left of the body is not waited for.
                extra.append((b"connection", b"close"))
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        elif message["type"] == "http.response.body":
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)

    async def fail(self, error: Exception) -> None:
        """Answers with an error; if the answer has begun, the connection ends without its end."""
        if self.begun:
            if not failures.is_told(self._scope):
                logger.error("request %s broke off", self.request_id, exc_info=error)
            return
        response = failures.answer(error, path=self._scope["path"], request_id=self.request_id)
        await response(self._scope, self._receive, self.send)

    def cut_off(self) -> None:
        """The grace period of the drain ended."""
        if not self.begun:
            self.status = 503


def _too_large(size: int, limit: int) -> TooLarge:
    return TooLarge("body", got=f"{size} bytes or more", allowed=f"at most {limit} bytes")
