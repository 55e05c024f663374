"""One replica of a service: its address, its channel and its stub.

Sits between `fairlead/rpc/replicas.py`, which chooses among replicas, and grpc.aio. Knows nothing about
retries.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import grpc
from grpc import aio

from fairlead.rpc.credentials import Credentials

_Stub = TypeVar("_Stub")

_MAX_RESPONSE_BYTES = 256 << 20
"""Largest message that a client accepts."""

_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", _MAX_RESPONSE_BYTES),
    ("grpc.max_send_message_length", -1),
    # A replica that restarts at its address is found within about a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # A server that vanishes without closing its connection is noticed during a call.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Services are inside the cluster; a web proxy in the environment is not meant for them.
    ("grpc.enable_http_proxy", 0),
]


def _options(health: str) -> list[tuple[str, int | str]]:
    config = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": health}}
    return [("grpc.service_config", json.dumps(config)), *_OPTIONS]


class _Methods:
    """A channel that remembers the path of each method that a stub creates on it."""

    def __init__(self, channel: aio.Channel) -> None:
        self._channel = channel
        self.paths: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - unary_unary and its siblings differ in type
        create = getattr(self._channel, name)

        def creating(path: str, *arguments: object, **options: object) -> object:
            method = create(path, *arguments, **options)
            self.paths[id(method)] = path
            return method

        return creating


class Replica(Generic[_Stub]):
    """One address, its channel and its stub."""

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        make_stub: Callable[[aio.Channel], _Stub],
        *,
        health: str = "",
    ) -> None:
        """Create the channel.

        Args:
            address: `host:port`, or a gRPC target.
            credentials: TLS and API key.
            make_stub: creates the generated stub.
            health: the service that must be SERVING for the channel to be READY; "" for the whole server.
        """
        target = address if "://" in address else f"dns:///{address}"
        self.address = address
        self.balanced = "://" in address
        """Whether several servers may share the address; the retry delay of one is then not that of all."""
        self.channel = credentials.channel(target, _options(health))
        methods = _Methods(self.channel)
        self.stub = make_stub(methods)  # type: ignore[arg-type]
        self.paths = methods.paths
        self.state = grpc.ChannelConnectivity.IDLE
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.hold_until = 0.0
        """It asked for no calls before this time (monotonic clock)."""

    def path_of(self, method: object) -> str:
        """Return the path of a method of the stub, `/service/method`, for metrics; empty if it is unknown."""
        return self.paths.get(id(method)) or str(getattr(method, "path", ""))

    async def watch(self, changed: asyncio.Condition) -> None:
        """Keep the channel connected and `state` current, until cancelled."""
        while True:
            self.state = self.channel.get_state(try_to_connect=True)
            async with changed:
                changed.notify_all()
            await self.channel.wait_for_state_change(self.state)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Count a call in progress."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def retire(self, within_seconds: float) -> None:
        """Close the channel after the calls on it have ended, or after this many seconds."""
        # Not by the grace period of gRPC's close: if that is cancelled, the connection is never closed.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), within_seconds)
        await self.channel.close()
