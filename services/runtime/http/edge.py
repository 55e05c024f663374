"""The outermost layer of every HTTP request: authentication, limits, deadline, cancellation, metrics, log.

An ASGI app between uvicorn and the FastAPI app. It reads the whole body, within the limits, before the app
starts. What differs between services is in `HttpService`: who may do what, and the format of errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import Gauge
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fairlead import tracing
from fairlead.config.http import HttpSection
from fairlead.config.infrastructure import AccessLog
from fairlead.errors import DeadlineExceeded, Overloaded, PermissionDenied, Unauthenticated, Unavailable
from fairlead.rpc.status import REQUEST_ID
from services.runtime.access.control import AccessControl, Caller
from services.runtime.http.body import BodyBuffer, store_body, too_large
from services.runtime.http.browsers import BrowserGuard
from services.runtime.http.call import HttpCall
from services.runtime.http.failures import Respond, TooLarge, is_reported
from services.runtime.http.limit_headers import limit_headers
from services.runtime.http.paths import path_of, set_root
from services.runtime.http.proxies import ProxyChain

logger = logging.getLogger(__name__)

_UNLOGGED = ("/healthz", "/readyz", "/metrics")
"""Requested all the time by machines: counted, but not logged and not limited."""
_LOGGED_BYTES = 4_096
_DISCARDED_BYTES = 64 << 20
_DISCARD_SECONDS = 2.0
_BODY_IDLE_SECONDS = 20.0
"""Longest pause between two parts of a body."""
_BEFORE_BODY = (TooLarge, Unauthenticated, PermissionDenied, Overloaded)
"""Errors that may be raised before the whole body was read."""
_CLIENT_CLOSED = 499
"""Status in the log if the caller closed the connection; nginx uses the same number. It is never sent."""


class HttpMetrics(Protocol):
    """The metrics of the requests of a service."""

    @property
    def in_flight(self) -> Gauge:
        """Requests being answered."""

    def record(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended.

        Args:
            route: its route, from `HttpService.route_of`.
            status: its HTTP status; 499: the caller disconnected.
            seconds: time from its headers to the end of its response.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpService:
    """What the edge needs to know of its service."""

    name: str
    """In messages and in the name of the access log, such as `gateway`."""
    authorize: Callable[[Caller, HttpCall, Scope], Awaitable[None]]
    """Raises an error if the caller may not send the request; completes the caller otherwise."""
    respond: Respond
    """Makes the responses of requests that fail."""
    route_of: Callable[[str], str]
    """Returns the label of a path in the metrics."""
    metrics: HttpMetrics
    """Counts requests."""
    browsers: BrowserGuard | None = None
    """Refuses requests of foreign pages; None for a service that reads no cookies and has no pages."""


class HttpEdge:
    """An ASGI app that wraps another one."""

    def __init__(
        self,
        app: ASGIApp,
        section: HttpSection,
        service: HttpService,
        access: AccessControl,
        *,
        access_log: AccessLog = "auto",
    ) -> None:
        """
        Args:
            app: handles the request.
            section: the limits.
            service: the service that the edge protects.
            access: enforces the limits of API keys.
            access_log: whether to log each request, and whether with its body; `auto` means `plain`.
        """
        self._app = app
        self._service = service
        self._access = access
        self._access_log = access_log
        self._logger = logging.getLogger(f"services.{service.name}.access")
        self._section = section
        self._metrics = service.metrics
        self._proxies = ProxyChain(section.trusted_proxies)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        set_root(scope, self._section.root_path)
        exchange = _HttpExchange(scope, receive, send, self._service)
        try:
            await self._serve(exchange, scope)
        except asyncio.CancelledError:
            # The drain's grace period ended. Raised again, it would be logged as a bug of the app.
            await exchange.cut_off()
        except Exception as error:  # noqa: BLE001 - the outermost edge
            if isinstance(error, _BEFORE_BODY):
                await exchange.discard_body()
            await exchange.fail(error)
        finally:
            self._record(exchange, scope)

    async def _serve(self, exchange: _HttpExchange, scope: Scope) -> None:
        call = HttpCall.of(scope["headers"], timeout_seconds=self._section.timeout_seconds)
        exchange.call = call
        call.store_in(scope)
        call.apply_timeout()
        exchange.caller = Caller(call.request_id)
        if self._service.browsers is not None and path_of(scope) not in _UNLOGGED:
            self._service.browsers.check(scope["method"], scope["headers"])
        await self._service.authorize(exchange.caller, call, scope)
        if path_of(scope) not in _UNLOGGED:
            exchange.trace()
        with self._slot(limited=path_of(scope) not in _UNLOGGED):
            async with self._access.request(exchange.caller):
                try:
                    async with asyncio.timeout(call.remaining()):
                        await exchange.read_body(limit=self._section.max_body_bytes)
                except TimeoutError:
                    raise DeadlineExceeded("the deadline passed before the whole body was received") from None
                await exchange.run(self._app)

    @contextlib.contextmanager
    def _slot(self, *, limited: bool) -> Iterator[None]:
        """Count a request while it is in flight: its caller is known, and its response is not complete.

        Raises:
            Overloaded: too many requests are in flight.
        """
        if limited and self._in_flight >= self._section.max_in_flight:
            raise Overloaded(
                f"{self._section.max_in_flight} requests are in flight, "
                f"the limit of this {self._service.name}",
                retry_after_seconds=1.0,
            )
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)

    def _record(self, exchange: _HttpExchange, scope: Scope) -> None:
        """Count and log a request that has ended."""
        seconds = time.monotonic() - exchange.started
        status = exchange.final_status
        path = path_of(scope)
        route = self._service.route_of(path)
        self._metrics.record(route, status, seconds)
        self._access.count_tokens(exchange.caller)
        if exchange.span.is_recorded:
            exchange.end_span(status)
        unlogged = self._access_log == "off" or path in _UNLOGGED
        if unlogged or not self._logger.isEnabledFor(logging.INFO):
            return
        fields: dict[str, object] = {
            "method": scope["method"],
            "path": path[:200],
            "status": status,
            "seconds": round(seconds, 4),
            "request_bytes": len(exchange.body),
            "response_bytes": exchange.sent_bytes,
            "peer": self._proxies.client(scope),
            "request_id": exchange.request_id,
            "key": exchange.caller.key_id,
            "tokens": exchange.caller.num_tokens,
        }
        if self._access_log == "texts":
            fields["body"] = exchange.body[:_LOGGED_BYTES].decode(errors="replace")
        self._logger.info("%s %s %d", fields["method"], fields["path"], status, extra=fields)


class _HttpExchange:
    """One request, and what has been sent of its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, service: HttpService) -> None:
        self._scope = scope
        self._service = service
        self._receive = receive
        self._send = send
        self._disconnected = asyncio.Event()
        self.started = time.monotonic()
        self._started_ns = time.time_ns()
        self.span = tracing.NO_SPAN
        self.call: HttpCall | None = None
        self.caller = Caller("")
        self.body = bytearray()
        self.status = _CLIENT_CLOSED
        self.sent_bytes = 0
        self.response_started = False
        self.body_received = False

    @property
    def request_id(self) -> str:
        """The id of the request; empty if its headers could not be read."""
        return self.call.request_id if self.call is not None else ""

    @property
    def final_status(self) -> int:
        """The status for logs and metrics: that of the failure if a stream broke off."""
        broken = self.call.stream_status if self.call is not None else None
        return broken or self.status

    def trace(self) -> None:
        """Begin the span of the request, whose caller is known; see `tracing.serve`."""
        assert self.call is not None
        route = self._service.route_of(path_of(self._scope))
        attributes = {
            "http.request.method": self._scope["method"],
            "url.path": path_of(self._scope)[:200],
            "fairlead.request_id": self.request_id,
        }
        name = f"{self._scope['method']} {route}"
        self.span = tracing.serve(
            name, self.call.traceparent, start_ns=self._started_ns, attributes=attributes
        )

    def end_span(self, status: int) -> None:
        """End its span with a status."""
        self.span.set(**{"http.response.status_code": status, "fairlead.tokens": self.caller.num_tokens})
        if status >= 500:
            self.span.fail(str(status))
        self.span.end()

    async def read_body(self, *, limit: int) -> None:
        """Receive the body, and decompress it if it is compressed.

        Raises:
            TooLarge: it exceeds the limit in bytes; the rest is not read.
            InvalidInput: it cannot be decompressed.
        """
        headers = dict(self._scope["headers"])
        length = headers.get(b"content-length", b"")
        # h11 accepts at most 20 digits.
        if length.isdigit() and int(length) > limit:
            raise too_large(int(length), limit)
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        body = BodyBuffer(encoding, num_bytes=int(length) if length.isdigit() else 0, limit=limit)
        while True:
            try:
                async with asyncio.timeout(_BODY_IDLE_SECONDS):
                    message = await self._receive()
            except TimeoutError:
                raise DeadlineExceeded(
                    f"no part of the body was received for {_BODY_IDLE_SECONDS:g} s"
                ) from None
            if message["type"] == "http.disconnect":
                self._disconnected.set()
                return
            more = message.get("more_body", False)
            self.body_received = not more
            await body.add(message.get("body", b""))
            if not more:
                break
        self.body = body.finish()
        store_body(self._scope, self.body)

    async def discard_body(self) -> None:
        """Read some more of the body and drop it: many clients read no response until they have sent it.

        A client that sends `Expect: 100-continue` waits for the response instead; reading would invite it to
        send the body.
        """
        expects = dict(self._scope["headers"]).get(b"expect", b"").lower()
        if self.body_received or expects == b"100-continue":
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
        """Return a `receive` that gives the app an empty body: the routes find it in the scope."""
        given = False

        async def receive() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": b"", "more_body": False}
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
            extra += limit_headers(self.caller)
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
            if not is_reported(self._scope):
                logger.error("the response to request %s broke off", self.request_id, exc_info=error)
            return
        response = self._service.respond(error, path_of(self._scope), self.request_id)
        await response(self._scope, self._receive, self.send)

    async def cut_off(self) -> None:
        """Answer that the drain's grace period ended; a response that has started is cut off."""
        if self.response_started:
            logger.warning("the drain ended before the response to request %s", self.request_id)
            if self.call is not None:
                self.call.stream_status = self.call.stream_status or 503
            return
        await self.fail(Unavailable(f"the {self._service.name} is draining, and the request took too long"))
