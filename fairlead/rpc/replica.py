"""One address of a service: its gRPC channel, kept connected, and the stub on it.

Used by `fairlead/rpc/channel.py`, which chooses among several replicas. A channel is READY while it is
connected and the server's health reports SERVING (gRFC A17).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import grpc
from grpc import aio

from fairlead.errors import ConfigError
from fairlead.rpc.credentials import Credentials

_Stub = TypeVar("_Stub")

MAX_RESPONSE_BYTES = 256 << 20
"""Largest message that a client accepts."""

_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    ("grpc.max_send_message_length", -1),
    # A replica that starts again at its address is found within about a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # A peer that vanished without a word is noticed in the middle of a call.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Services are inside the cluster; a web proxy in the environment is not meant for them.
    ("grpc.enable_http_proxy", 0),
]


def _options(health: str) -> list[tuple[str, int | str]]:
    config = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": health}}
    return [("grpc.service_config", json.dumps(config)), *_OPTIONS]


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
        """`health` is the service that must be SERVING for the channel to be READY; "" stands for all."""
        target = address if "://" in address else f"dns:///{address}"
        self.address = address
        self.balanced = "://" in address
        """There may be several servers behind it; what one of them says does not go for all."""
        self.channel = credentials.channel(target, _options(health))
        self.stub = make_stub(self.channel)
        self.state = grpc.ChannelConnectivity.IDLE
        self.in_flight = 0
        self.hold_until = 0.0
        """It asked not to be called before this time (monotonic)."""

    async def watch(self, changed: asyncio.Condition) -> None:
        """Keeps the channel connected and `state` true, until it is cancelled."""
        while True:
            self.state = self.channel.get_state(try_to_connect=True)
            async with changed:
                changed.notify_all()
            await self.channel.wait_for_state_change(self.state)


def checked_addresses(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """Those of a service.

    Raises:
        ConfigError: if there is none, or one without a port.
    """
    found = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    if not found:
        raise ConfigError("addresses", got="none", allowed="at least one host:port")
    for address in found:
        if not address.rpartition(":")[2].isdigit():
            raise ConfigError("addresses", got=address, allowed="host:port or dns:///name:port")
    return found
