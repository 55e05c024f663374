"""The gRPC server of the model and weights services: health, reflection, metrics, limits, drain.

Sits between a service's `__main__`, which passes a function that adds the servicers, and grpc.aio. Knows
nothing about models or messages.
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
from prometheus_client import REGISTRY, CollectorRegistry

from fairlead import metrics
from fairlead.config.base import ServerSection, ServiceSection, TlsSection
from fairlead.config.infrastructure import KeysSection, ObserveSection
from fairlead.errors import ConfigError
from fairlead.metrics import page as metrics_page
from fairlead.rpc import call_types
from fairlead.rpc.credentials import is_loopback
from fairlead.rpc.tls import Certificates
from services.runtime.access.control import AccessControl
from services.runtime.edge import EdgeInterceptor
from services.runtime.health import Health
from services.runtime.process import Stopped, on_stop
from services.runtime.reflection import add_reflection
from services.runtime.wire_limits import WireLimits

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_LAME_DUCK_SECONDS = 0.1
"""Time between NOT_SERVING and the first refusal, so that clients that watch health have moved on."""
_METADATA_BYTES = 8 << 10
_SETTLE_SECONDS = 0.05
"""Time for requests that were already read from the wire when the last RPC ended."""


class ModelServer:
    """A gRPC server and its /metrics page, from start to drain; an async context manager.

    In its body: `await load(...)` the model, `await start(...)` with the servicers, `set_ready(True)`, then
    `await run_until_stopped()`.
    """

    def __init__(
        self,
        name: str,
        section: ServiceSection,
        observe: ObserveSection,
        *,
        limits: ServerSection | None = None,
        keys: KeysSection | None = None,
        tls: TlsSection | None = None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """
        Args:
            name: name of the configuration section, for messages.
            section: address, and the deadline of a call.
            observe: settings of logs and metrics.
            limits: limits of every server; None for the defaults.
            keys: API keys; None requires none.
            tls: certificate; None means plain text.
            registry: metrics shown by /metrics.

        Raises:
            ConfigError: if the file of keys or the certificate cannot be used.
        """
        self._name = name
        self._section = section
        self._limits = limits or ServerSection()
        self._observe = observe
        self._registry = registry
        self._stop = asyncio.Event()
        self._access = AccessControl(keys or KeysSection(), access_metrics=metrics.AccessMetrics(registry))
        self._server_metrics = metrics.ServerMetrics(registry)
        self._edge = EdgeInterceptor(
            self._server_metrics,
            self._access,
            max_in_flight_bytes=self._limits.max_in_flight_bytes,
            access_log=observe.access_log,
        )
        self._certificates = _certificates(tls, registry)
        self._tls = tls
        self._health: Health | None = None
        self._server: aio.Server | None = None
        self._stop_metrics: Callable[[], None] | None = None
        self.address = ""
        """Address it listens on, `host:port`; set by `start`."""
        self.metrics_port = -1
        """Port of /metrics and /readyz; -1 if disabled."""

    async def __aenter__(self) -> Self:
        """Install the signal handlers, open /metrics, and check that the port is free.

        Raises:
            ConfigError: if a port is in use or the address cannot be bound.
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
        """Stop immediately, without a drain."""
        if self._server is not None:
            await self._server.stop(None)
        if self._stop_metrics is not None:
            await asyncio.to_thread(self._stop_metrics)
        await self._access.close()

    @property
    def ready(self) -> bool:
        """Whether health reports SERVING."""
        return self._health is not None and self._health.serving

    @property
    def accepts(self) -> bool:
        """Whether new RPCs are accepted; false once the drain refuses them."""
        return self._edge.is_open

    def set_ready(self, ready: bool) -> None:
        """Set the health of the server and all services. Has no effect before `start` and while draining."""
        if self._health is not None:
            self._health.set_serving(ready)

    def stop(self) -> None:
        """Start the drain, as a signal does."""
        self._stop.set()

    async def load(self, function: Callable[[], _T]) -> _T:
        """Run slow, blocking work in a thread that does not delay a stop, and return its result.

        Raises:
            Stopped: if a signal arrived first.
        """
        outcome: futures.Future[_T] = futures.Future()

        def work() -> None:
            try:
                outcome.set_result(function())
            except BaseException as error:  # noqa: BLE001 - passed to the waiting task
                outcome.set_exception(error)

        threading.Thread(target=work, name="load", daemon=True).start()
        return await self.unless_stopped(asyncio.wrap_future(outcome))

    async def unless_stopped(self, work: Awaitable[_T]) -> _T:
        """Return the result of an awaitable.

        Raises:
            Stopped: if a signal arrived first.
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

    async def start(
        self,
        add: Callable[[aio.Server], None],
        services: Sequence[str],
        wire_limits: WireLimits | None = None,
    ) -> str:
        """Start listening. Health is NOT_SERVING until `set_ready(True)`.

        Args:
            add: registers the servicers.
            services: full names of the services, for health and reflection.
            wire_limits: what a request may contain; None for the defaults.

        Returns:
            The address, with the actual port.

        Raises:
            ConfigError: if the port is in use.
        """
        self._health = Health(services)
        self._edge.wire_limits = wire_limits or WireLimits()
        self._server = aio.server(interceptors=[self._edge], options=self._options())
        add(self._server)
        for service in services:
            self._server_metrics.add_service(service, call_types.methods(service))
        self._health.add_to(self._server)
        names = [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        add_reflection(self._server, names)
        address = self._section.bind_address
        try:
            port = self._listen(self._server, address)
        except RuntimeError as error:
            raise _unavailable(f"{self._name}.bind", address, "in use") from error
        await self._server.start()
        self.address = f"{address.rpartition(':')[0]}:{port}"
        fields = {"address": self.address, "metrics_port": self.metrics_port}
        logger.info("%s listens on %s", self._name, self.address, extra=fields)
        self._warn()
        return self.address

    def _listen(self, server: aio.Server, address: str) -> int:
        if self._certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._certificates.server_credentials())

    def _warn(self) -> None:
        """Warn about settings that expose the server or texts, in case that is not intended."""
        local = is_loopback(self.address)
        if not local and not self._access.requires_keys and not (self._tls and self._tls.mutual):
            logger.warning(
                "%s accepts any caller that can reach %s: see [keys] and [tls]", self._name, self.address
            )
        if not local and self._access.requires_keys and self._certificates is None:
            logger.warning("%s receives API keys in plain text on %s: see [tls]", self._name, self.address)
        if self._observe.access_log == "texts":
            logger.warning("%s logs the texts of requests (observe.access_log)", self._name)

    async def run_until_stopped(self, failure: futures.Future[None] | None = None) -> None:
        """Wait for SIGTERM, SIGINT or `stop`, or until what is served has failed; then drain.

        Args:
            failure: fails with the error after which nothing can be served; that error is raised.
        """
        stopped = asyncio.create_task(self._stop.wait())
        failed = (
            asyncio.get_running_loop().create_future() if failure is None else asyncio.wrap_future(failure)
        )
        await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        await self.drain()
        if failed.done():
            failed.result()
        failed.cancel()

    async def drain(self) -> None:
        """Report NOT_SERVING, then refuse new RPCs with UNAVAILABLE; running ones have `drain_seconds`.

        The gRPC server itself is stopped last: it would end RPCs as CANCELLED that it has read but not
        started.
        """
        if self._server is None or self._health is None:
            return
        logger.info("%s is draining", self._name, extra={"in_flight": self._edge.in_flight})
        self._health.close()
        await asyncio.sleep(_LAME_DUCK_SECONDS)
        self._edge.refuse()
        grace = self._limits.drain_seconds
        try:
            async with asyncio.timeout(grace):
                await self._edge.wait_idle()
                await asyncio.sleep(_SETTLE_SECONDS)
                await self._edge.wait_idle()
        except TimeoutError:
            cancelled = self._edge.in_flight
            logger.warning("%s: %d RPCs cancelled after %g s (drain_seconds)", self._name, cancelled, grace)
        await self._server.stop(None)
        self._server = None
        logger.info("%s stopped", self._name)

    def _options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self._limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # Above the first limit a call is refused with a probability that grows up to the second (gRPC
            # A79).
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", 2 * _METADATA_BYTES),
            # gRPC adds ±10% of jitter to the age (gRFC A9).
            ("grpc.max_connection_age_ms", round(self._limits.max_connection_age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", round(self._section.timeout_seconds * 1000)),
            # Clients may ping every 10 s during a long, silent call; by default gRPC answers that with
            # GOAWAY.
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]


def _certificates(tls: TlsSection | None, registry: CollectorRegistry) -> Certificates | None:
    if tls is None or not tls.on:
        return None
    return Certificates(tls, serves=True, on_failure=metrics.TlsMetrics(registry).failures.inc)


def _unavailable(field: str, address: str, reason: str) -> ConfigError:
    return ConfigError(field, got=f"{address} ({reason})", allowed="host:port that is free on this machine")


def _check_free(address: str, field: str) -> None:
    """Check that the port is free, before loading a model for minutes.

    Raises:
        ConfigError: if it is not, or the address is invalid.
    """
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
        raise _unavailable(field, address, error.strerror or str(error)) from error
