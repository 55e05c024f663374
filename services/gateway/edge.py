"""The outermost layer of every HTTP request: authentication, limits, deadline, cancellation, metrics, log.

An ASGI app between uvicorn and the FastAPI app. It reads the whole body, within the limits, before the app
starts. It knows nothing about dialects; `failures.py` knows how each dialect reports an error.
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
from services.runtime.access import AccessControl, Caller

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("services.gateway.access")

_UNLOGGED = ("/healthz", "/readyz", "/metrics")
"""Requested all the time by machines: counted, but not logged and not limited."""
_LOGGED_BYTES = 4_096
_DISCARDED_BYTES = 64 << 20
_DISCARD_SECONDS = 2.0
_BEFORE_BODY = (TooLarge, Unauthenticated, PermissionDenied, Overloaded)
"""Errors that may be raised before the whole body was read."""
_CLIENT_CLOSED = 499
"""Status in the log if the caller closed the connection; nginx uses the same number. It is never sent."""


class HttpEdge:
    """An ASGI app that wraps another one."""

    def __init__(
        self,
        app: ASGIApp,
        section: GatewaySection,
        gateway_metrics: metrics.GatewayMetrics,
        access: AccessControl,
        *,
        access_log: AccessLog = "auto",
    ) -> None:
        """
        Args:
            app: handles the request.
            section: the limits.
            gateway_metrics: counts requests.
            access: authenticates callers and enforces the limits of their keys.
            access_log: whether to log each request, and whether with its body; `auto` means `plain`.
        """
        self._app = app
        self._access = access
        self._access_log = access_log
        self._section = section
        self._metrics = gateway_metrics
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _HttpExchange(scope, receive, send)
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            await self._serve(exchange, scope)
        except asyncio.CancelledError:
            exchange.cut_off()
            raise
        except Exception as error:  # noqa: BLE001 - the outermost edge
            if isinstance(error, _BEFORE_BODY):
                await exchange.discard_body()
            await exchange.fail(error)
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)
            self._record(exchange, scope)

    async def _serve(self, exchange: _HttpExchange, scope: Scope) -> None:
        exchange.call = HttpCall.of(scope["headers"], timeout_seconds=self._section.timeout_seconds)
        exchange.call.store_in(scope)
        if self._in_flight > self._section.max_in_flight and scope["path"] not in _UNLOGGED:
            raise Overloaded(
                f"{self._section.max_in_flight} requests are in flight, the limit of this gateway",
                retry_after_seconds=1.0,
            )
        exchange.caller = Caller(exchange.call.request_id)
        bearer = exchange.call.authorization
        self._access.authorize(exchange.caller, bearer=bearer, scope=need_of(scope["path"]))
        async with self._access.request(exchange.caller):
            try:
                async with asyncio.timeout(exchange.call.remaining()):
                    await exchange.read_body(limit=self._section.max_body_bytes)
            except TimeoutError:
                raise DeadlineExceeded("the deadline passed before the whole body was received") from None
            await exchange.run(self._app)

    def _record(self, exchange: _HttpExchange, scope: Scope) -> None:
        """Count and log a request that has ended."""
        seconds = time.monotonic() - exchange.started
        dialect = failures.dialect_of(scope["path"])
        self._metrics.requests.labels(dialect=dialect, status=str(exchange.status)).inc()
        self._metrics.seconds.labels(dialect=dialect).observe(seconds)
        unlogged = self._access_log == "off" or scope["path"] in _UNLOGGED
        if unlogged or not access_logger.isEnabledFor(logging.INFO):
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
        access_logger.info("%s %s %d", fields["method"], fields["path"], exchange.status, extra=fields)


class _HttpExchange:
    """One request, and what has been sent of its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._disconnected = asyncio.Event()
        self.started = time.monotonic()
        self.call: HttpCall | None = None
        self.caller = Caller("")
        self.body = b""
        self.status = _CLIENT_CLOSED
        self.sent_bytes = 0
        self.response_started = False
        self.body_received = False

    @property
    def request_id(self) -> str:
        """The id of the request; empty if its headers could not be read."""
        return self.call.request_id if self.call is not None else ""

    async def read_body(self, *, limit: int) -> None:
        """Receive the body, and decompress it if it is compressed.

        Raises:
            TooLarge: it exceeds the limit in bytes; the rest is not read.
            InvalidInput: it cannot be decompressed.
        """
        for name, value in self._scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > limit:
                raise _too_large(int(value), limit)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._disconnected.set()
                return
            size += len(message.get("body", b""))
            if size > limit:
                raise _too_large(size, limit)
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        self.body_received = True
        self.body = b"".join(parts)
        encoding = (
            dict(self._scope["headers"]).get(b"content-encoding", b"identity").decode("latin-1").lower()
        )
        if encoding != "identity":
            self.body = await asyncio.to_thread(decompressed, self.body, encoding, limit=limit)

    async def discard_body(self) -> None:
        """Read some more of the body and drop it: many clients read no response until they have sent it."""
        if self.body_received:
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
        """Run the app on the request; cancel it if the caller closes the connection."""
        if self._disconnected.is_set():
            return
        work = asyncio.ensure_future(app(self._scope, self._replay(), self.send))
        disconnect = asyncio.ensure_future(self._wait_for_disconnect())
        try:
            await asyncio.wait((work, disconnect), return_when=asyncio.FIRST_COMPLETED)
        finally:
            unfinished = not work.done()
            for task in (work, disconnect):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await disconnect
            if unfinished:
                await asyncio.wait((work,))
        if unfinished and work.cancelled():
            return
        work.result()

    def _replay(self) -> Receive:
        """Return a `receive` that gives the app the body that was read."""
        given = False

        async def receive() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": self.body, "more_body": False}
            await self._disconnected.wait()
            return {"type": "http.disconnect"}

        return receive

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._disconnected.set()

    async def send(self, message: Message) -> None:
        """Send a part of the response; add the request id to its headers."""
        if message["type"] == "http.response.start":
            self.response_started = True
            self.status = message["status"]
            extra = [(REQUEST_ID.encode(), self.request_id.encode())] if self.request_id else []
            if not self.body_received:
                # The rest of the body would be read as the next request.
                extra.append((b"connection", b"close"))
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        elif message["type"] == "http.response.body":
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)

    async def fail(self, error: Exception) -> None:
        """Answer with an error. If the response has started, the connection closes before its end."""
        if self.response_started:
            if not failures.is_reported(self._scope):
                logger.error("the response to request %s broke off", self.request_id, exc_info=error)
            return
        response = failures.response_to(error, path=self._scope["path"], request_id=self.request_id)
        await response(self._scope, self._receive, self.send)

    def cut_off(self) -> None:
        """Record that the drain's grace period ended before the response started."""
        if not self.response_started:
            self.status = 503


def _too_large(size: int, limit: int) -> TooLarge:
    return TooLarge("body", got=f"{size} bytes or more", allowed=f"at most {limit} bytes")
