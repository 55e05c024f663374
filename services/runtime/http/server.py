"""The HTTP server: binds the port, handles signals, serves and drains. Wraps uvicorn for `__main__`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fairlead.config.base import TlsSection
from fairlead.config.http import HttpSection
from fairlead.errors import ConfigError
from fairlead.rpc.credentials import is_loopback
from fairlead.rpc.tls import Certificates
from services.runtime.http.connections import Connection
from services.runtime.process import on_stop

logger = logging.getLogger(__name__)

_LAME_DUCK_SECONDS = 0.1
"""Time between /readyz turning 503 and the port closing, for load balancers to notice."""


_SAID_BY_THE_EDGE = ("Cancel %s running task(s)", "ASGI callable returned without completing response")


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether the edge does not log what uvicorn logs: responses that were cut off."""
    return not str(record.msg).startswith(_SAID_BY_THE_EDGE)


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its own signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """A server on one port, from start to drain. An async context manager."""

    def __init__(
        self,
        section: HttpSection,
        *,
        name: str,
        drain_seconds: float = 30.0,
        tls: TlsSection | None = None,
        protocol: type[Connection] = Connection,
    ) -> None:
        """
        Args:
            section: the address and the limits.
            name: the section's name in the configuration, such as `gateway`; for messages.
            drain_seconds: time that requests in progress have after a signal.
            tls: the certificate; None serves plain text.
            protocol: handles a connection.

        Raises:
            ConfigError: the certificate cannot be used.
        """
        self._section = section
        self._name = name
        self._drain_seconds = drain_seconds
        self._protocol = protocol
        self._certificates = _certificates(section, tls)
        self._stop = asyncio.Event()
        self._socket: socket.socket | None = None
        self.draining = False
        """Whether a stop signal was received."""
        self.address = ""
        """The `host:port` it listens on; set on entering the context."""

    async def __aenter__(self) -> Self:
        """Bind the port and install the signal handlers.

        Raises:
            ConfigError: the port is in use, or the address cannot be bound.
        """
        self._socket = _listen(self._section.bind or self._section.addresses[0], field=f"{self._name}.bind")
        host, port = self._socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        on_stop(self.stop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._socket is not None
        self._socket.close()

    def stop(self) -> None:
        """Start the drain, as a signal does."""
        self._stop.set()

    def warn(self, *, asks_for_keys: bool, logs_texts: bool) -> None:
        """Warn of settings that may expose the service or log texts unintentionally."""
        if logs_texts:
            logger.warning("the %s logs the texts of requests (observe.access_log = texts)", self._name)
        if is_loopback(self.address):
            return
        if not asks_for_keys:
            logger.warning(
                "the %s at %s requires no API keys: see [keys]",
                self._name,
                self.address,
            )
        if self._certificates is None:
            logger.warning(
                "the %s at %s serves unencrypted HTTP: see [tls]",
                self._name,
                self.address,
            )

    async def serve(self, app: ASGIApp) -> None:
        """Serve until a signal; requests in flight then have `drain_seconds` to finish."""
        assert self._socket is not None
        server = _Uvicorn(
            uvicorn.Config(
                self._closing(app),
                http=self._protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=max(1, round(self._section.keep_alive_seconds)),
                timeout_graceful_shutdown=max(1, round(self._drain_seconds)),
            )
        )
        if self._certificates is not None:
            server.config.load()
            server.config.ssl = self._certificates.server_context()
        uvicorn_logger = logging.getLogger("uvicorn.error")
        uvicorn_logger.setLevel(logging.WARNING)
        uvicorn_logger.addFilter(_is_news)
        serving = asyncio.create_task(server.serve([self._socket]))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                self.draining = True
                connections = len(server.server_state.connections)
                logger.info("%s is draining", self._name, extra={"connections": connections})
                await asyncio.sleep(_LAME_DUCK_SECONDS)
                server.should_exit = True
            await serving
        finally:
            stopped.cancel()
            serving.cancel()
        logger.info("%s stopped", self._name)

    def _closing(self, app: ASGIApp) -> ASGIApp:
        """Return an app whose responses close their connections once the drain has begun.

        Callers then do not send their next request on a connection that is about to close.
        """

        async def closing(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_closing(message: Message) -> None:
                if self.draining and message["type"] == "http.response.start":
                    kept = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"connection"]
                    message = {**message, "headers": [*kept, (b"connection", b"close")]}
                await send(message)

            await app(scope, receive, send_closing)

        return closing


def _certificates(section: HttpSection, tls: TlsSection | None) -> Certificates | None:
    if tls is None or not tls.on or section.tls == "off":
        return None
    if section.tls == "server":
        tls = tls.model_copy(update={"mutual": False})
    return Certificates(tls, serves=True)


def _listen(address: str, *, field: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or "/" in address:
        raise ConfigError(field, got=address, allowed="host:port")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(2048)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        raise ConfigError(
            field,
            got=f"{address} ({getattr(error, 'strerror', None) or error})",
            allowed="an address of this machine with a free port",
        ) from error
    return listener
