"""The HTTP server: takes the port and the signals, serves, drains. Between `__main__` and uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from fairlead.config.base import TlsSection
from fairlead.config.serving import GatewaySection
from fairlead.errors import ConfigError
from fairlead.rpc.credentials import is_loopback
from fairlead.rpc.tls import Identity
from services.runtime.signals import on_stop

logger = logging.getLogger(__name__)

_LAME_DUCK_SECONDS = 0.1
"""Who asks /readyz leaves before the port closes."""


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """One port, from start to drain; an async context manager."""

    def __init__(self, section: GatewaySection, *, tls: TlsSection | None = None) -> None:
        """
        Args:
            section: where it listens, and its limits.
            tls: its certificate; None is plain text.

        Raises:
            ConfigError: for a certificate that cannot be used.
        """
        self._section = section
        self._identity = _identity(section, tls)
        self._stop = asyncio.Event()
        self._socket: socket.socket | None = None
        self.draining = False
        """Whether a signal has come."""
        self.address = ""
        """`host:port` it listens on; set on entering."""

    async def __aenter__(self) -> Self:
        """Takes the port and the signals.

        Raises:
            ConfigError: the port is taken, or the address cannot be listened on.
        """
        self._socket = _listen(self._section.bind or self._section.addresses[0])
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
        """What a signal does: the drain begins."""
        self._stop.set()

    def warn(self, *, asks_for_keys: bool, logs_texts: bool) -> None:
        """Says what is open to whom, and what is logged, where that may not be meant."""
        if logs_texts:
            logger.warning("the gateway logs the texts of requests (observe.access_log)")
        if is_loopback(self.address):
            return
        if not asks_for_keys:
            logger.warning("the gateway takes all who reach %s: see [keys]", self.address)
        if self._identity is None:
            logger.warning("the gateway speaks plain text at %s: see [tls]", self.address)

    async def serve(self, app: ASGIApp) -> None:
        """Serves until a signal; what runs then has `drain_seconds` to finish."""
        assert self._socket is not None
        server = _Uvicorn(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=max(1, round(self._section.keep_alive_seconds)),
                timeout_graceful_shutdown=max(1, round(self._section.drain_seconds)),
            )
        )
        if self._identity is not None:
            server.config.load()
            server.config.ssl = self._identity.server_context()
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        serving = asyncio.create_task(server.serve([self._socket]))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                self.draining = True
                logger.info("gateway drains", extra={"connections": len(server.server_state.connections)})
                await asyncio.sleep(_LAME_DUCK_SECONDS)
                server.should_exit = True
            await serving
        finally:
            stopped.cancel()
            serving.cancel()
        logger.info("gateway stopped")


def _identity(section: GatewaySection, tls: TlsSection | None) -> Identity | None:
    if tls is None or not tls.on or section.tls == "off":
        return None
    if section.tls == "server":
        tls = tls.model_copy(update={"mutual": False})
    return Identity(tls, serves=True)


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or "/" in address:
        raise ConfigError("gateway.bind", got=address, allowed="host:port to listen on")
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
            "gateway.bind",
            got=f"{address} ({getattr(error, 'strerror', None) or error})",
            allowed="host:port that is free on this machine",
        ) from error
    return listener
