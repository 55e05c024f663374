"""The gRPC server that model and weights services run: health, reflection, metrics, limits, drain.

Between a service's `__main__` and grpc.aio. Knows nothing of models or messages; it is handed a function that
adds the servicers.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent import futures
from types import TracebackType
from typing import Self, TypeVar

from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection
from prometheus_client import REGISTRY, CollectorRegistry

from fairlead import metrics
from fairlead.config.base import ServerSection, TlsSection
from fairlead.config.infrastructure import KeysSection, ObserveSection
from fairlead.errors import ConfigError
from fairlead.metrics import page as metrics_page
from fairlead.rpc.credentials import is_loopback
from fairlead.rpc.tls import Identity
from services.runtime.access import Access
from services.runtime.edge import Edge
from services.runtime.health import Health
from services.runtime.signals import on_stop

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_LAME_DUCK_SECONDS = 0.1
"""Clients that watch health leave before anything is refused."""
_METADATA_BYTES = 8 << 10
_SETTLE_SECONDS = 0.05
"""What had been read from the wire when the last RPC ended gets its answer."""


class Stopped(Exception):
    """SIGTERM or SIGINT came before the server was up; the process ends with 0."""


class ModelServer:
    """One gRPC server and its /metrics, from start to drain; an async context manager.

    Inside it: `await load(...)` the model, `await start(...)` with the servicers, `set_ready(True)`, then
    `await run_until_stopped()`.
    """

    def __init__(
        self,
        name: str,
        section: ServerSection,
        observe: ObserveSection,
        *,
        keys: KeysSection | None = None,
        tls: TlsSection | None = None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """
        Args:
            name: of the section, for messages.
            section: where it listens, and its limits.
            observe: logs and metrics.
            keys: who may call; None lets everybody.
            tls: its certificate; None is plain text.
            registry: what /metrics shows.

        Raises:
            ConfigError: for a file of keys or a certificate that cannot be used.
        """
        self._name = name
        self._section = section
        self._observe = observe
        self._registry = registry
        self._stop = asyncio.Event()
        metrics.ProcessMetrics(registry)
        self._access = Access(keys or KeysSection(), counts=metrics.AccessMetrics(registry))
        self._edge = Edge(
            metrics.ServerMetrics(registry),
            self._access,
            max_in_flight_bytes=section.max_in_flight_bytes,
            access_log=observe.access_log,
        )
        self._identity = _identity(tls, registry)
        self._tls = tls
        self._health: Health | None = None
        self._server: aio.Server | None = None
        self._stop_metrics: Callable[[], None] | None = None
        self.address = ""
        """`host:port` it listens on; set by `start`."""
        self.metrics_port = -1
        """Port of /metrics and /readyz; -1 if there is none."""

    async def __aenter__(self) -> Self:
        """Takes the signals, opens /metrics, checks that the port is free.

        Raises:
            ConfigError: if a port is taken or the address cannot be listened on.
        """
        _check_free(self._section.bind_address, f"{self._name}.bind")
        self.metrics_port, self._stop_metrics = metrics_page.serve(
            self._observe, tls=self._tls, ready=lambda: self.ready, registry=self._registry
        )
        on_stop(self.stop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops at once what is still running."""
        if self._server is not None:
            await self._server.stop(None)
        if self._stop_metrics is not None:
            await asyncio.to_thread(self._stop_metrics)
        await self._access.close()

    @property
    def ready(self) -> bool:
        """Whether health says SERVING."""
        return self._health is not None and self._health.serving

    @property
    def accepts(self) -> bool:
        """Whether new RPCs are taken, rather than refused as the server drains."""
        return self._edge.is_open

    def set_ready(self, ready: bool) -> None:
        """Health of the whole server and every service. Has no effect before `start` and while draining."""
        if self._health is not None:
            self._health.set_serving(ready)

    def stop(self) -> None:
        """What a signal does: the drain begins."""
        self._stop.set()

    async def load(self, function: Callable[[], _T]) -> _T:
        """Runs slow, blocking work in a thread that does not hold up a stop.

        Raises:
            Stopped: if a signal came first.
        """
        outcome: futures.Future[_T] = futures.Future()

        def work() -> None:
            try:
                outcome.set_result(function())
            except BaseException as error:  # noqa: BLE001 - handed to the waiting task
                outcome.set_exception(error)

        threading.Thread(target=work, name="load", daemon=True).start()
        return await self.unless_stopped(asyncio.wrap_future(outcome))

    async def unless_stopped(self, work: Awaitable[_T]) -> _T:
        """What is awaited.

        Raises:
            Stopped: if a signal came first.
        """
        result = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stop.wait())
        tasks: list[asyncio.Future[object]] = [result, stopped]  # type: ignore[list-item]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not result.done():
            if isinstance(result, asyncio.Task):
                result.cancel()
            raise Stopped
        return await result

    async def start(self, add: Callable[[aio.Server], None], services: Sequence[str]) -> str:
        """Listens. Health is NOT_SERVING until `set_ready(True)`.

        Args:
            add: registers the servicers.
            services: full names of them, for health and reflection.

        Returns:
            The address, with the real port.

        Raises:
            ConfigError: if the port is taken.
        """
        self._health = Health(services)
        self._server = aio.server(interceptors=[self._edge], options=self._options())
        add(self._server)
        self._health.add_to(self._server)
        names = [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], self._server)
        address = self._section.bind_address
        try:
            port = self._listen(self._server, address)
        except RuntimeError as error:
            raise _taken(f"{self._name}.bind", address, "in use") from error
        await self._server.start()
        self.address = f"{address.rpartition(':')[0]}:{port}"
        fields = {"address": self.address, "metrics_port": self.metrics_port}
        logger.info("%s listens on %s", self._name, self.address, extra=fields)
        self._warn()
        return self.address

    def _listen(self, server: aio.Server, address: str) -> int:
        if self._identity is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._identity.server_credentials())

    def _warn(self) -> None:
        """Says what is open to whom, where that may not be meant."""
        here = is_loopback(self.address)
        if not here and not self._access.asks_for_keys and not (self._tls and self._tls.mutual):
            logger.warning("%s takes all who reach %s: see [keys] and [tls]", self._name, self.address)
        if not here and self._access.asks_for_keys and self._identity is None:
            logger.warning("%s gets API keys in plain text at %s: see [tls]", self._name, self.address)
        if self._observe.access_log == "texts":
            logger.warning("%s logs the texts of requests (observe.access_log)", self._name)

    async def run_until_stopped(self) -> None:
        """Waits for SIGTERM or SIGINT (or `stop`), then drains."""
        await self._stop.wait()
        await self.drain()

    async def drain(self) -> None:
        """NOT_SERVING, then UNAVAILABLE for what is new; what runs finishes within `drain_seconds`.

        The gRPC server itself is stopped last: it would end RPCs as CANCELLED that it had read but not begun.
        """
        if self._server is None or self._health is None:
            return
        logger.info("%s drains", self._name, extra={"in_flight": self._edge.in_flight})
        self._health.close()
        await asyncio.sleep(_LAME_DUCK_SECONDS)
        self._edge.refuse()
        grace = self._section.drain_seconds
        try:
            async with asyncio.timeout(grace):
                await self._edge.wait_idle()
                await asyncio.sleep(_SETTLE_SECONDS)
                await self._edge.wait_idle()
        except TimeoutError:
            logger.warning("%s: %d RPCs cut off after %g s", self._name, self._edge.in_flight, grace)
        await self._server.stop(None)
        self._server = None
        logger.info("%s stopped", self._name)

    def _options(self) -> list[tuple[str, int]]:
        section = self._section
        return [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", section.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # Beyond the first a call is refused with a probability that grows up to the second (gRPC A79).
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", 2 * _METADATA_BYTES),
            # gRPC adds ±10% of jitter to the age by itself (gRFC A9).
            ("grpc.max_connection_age_ms", round(section.max_connection_age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", round(section.timeout_seconds * 1000)),
            # Clients may ping every 10 s through a long, silent call; the default answers that with GOAWAY.
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]


def _identity(tls: TlsSection | None, registry: CollectorRegistry) -> Identity | None:
    if tls is None or not tls.on:
        return None
    return Identity(tls, serves=True, on_failure=metrics.TlsMetrics(registry).failures.inc)


def _taken(field: str, address: str, reason: str) -> ConfigError:
    return ConfigError(field, got=f"{address} ({reason})", allowed="host:port that is free on this machine")


def _check_free(address: str, field: str) -> None:
    """Says that the port is taken before minutes are spent on loading a model."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise ConfigError(field, got=address, allowed="host:port to listen on")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, kind, protocol, _, place = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except OSError as error:
        raise _taken(field, address, error.strerror or str(error)) from error
