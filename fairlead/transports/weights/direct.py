"""The receiver's side of direct connections: shard bytes over plain TCP, several times as fast as gRPC.

A sender offers a direct connection in its reply to FetchShard: a port, and a ticket for that one call. A
receiver that connects and shows the ticket gets the bytes of the call. The sender's side is `direct_port.py`.
Knows neither shards nor messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import TypeVar

from fairlead.errors import Unavailable
from fairlead.types.weights import DirectOffer

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_CONNECT_SECONDS = 2.0
_AVOID_SECONDS = 60.0
"""How long a sender is asked only over gRPC after a direct connection to it failed."""


class DirectConnection:
    """A blocking TCP connection, used by one thread at a time. Both sides use it."""

    def __init__(self, connection: socket.socket, *, timeout_seconds: float) -> None:
        """`timeout_seconds`: how long one read or write may block."""
        self.socket = connection
        connection.settimeout(timeout_seconds)

    async def run(self, function: Callable[[], _T], threads: Executor | None = None) -> _T:
        """Run a function that blocks on the connection in a thread, and return its result.

        If the caller is cancelled meanwhile, this shuts the connection down and waits for the thread to end:
        only then may the descriptors that it uses be closed.
        """
        work = asyncio.get_running_loop().run_in_executor(threads, function)
        try:
            return await asyncio.shield(work)
        finally:
            if not work.done():
                work.add_done_callback(lambda work: work.exception())
                with contextlib.suppress(OSError):
                    self.socket.shutdown(socket.SHUT_RDWR)
            while not work.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([work])

    def close(self) -> None:
        """Close the connection; bytes that the kernel has accepted are still sent."""
        self.socket.close()


@asynccontextmanager
async def connected(offer: DirectOffer, *, stall_seconds: float) -> AsyncIterator[DirectConnection]:
    """Connect to a sender that made an offer; a read times out after `stall_seconds`.

    Raises:
        Unavailable: if the connection cannot be made.
    """
    where = f"port {offer.port} of {offer.host}"
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            connection = await _connect(offer)
    except (OSError, TimeoutError) as error:
        raise Unavailable(f"cannot connect to {where}: {error or 'no answer'}") from error
    with contextlib.closing(connection):
        yield DirectConnection(connection, timeout_seconds=stall_seconds)


async def _connect(offer: DirectOffer) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure = OSError("no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(
        offer.host, offer.port, type=socket.SOCK_STREAM
    ):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, address)
            await loop.sock_sendall(connection, offer.ticket)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            failure = error
        else:
            return connection
    raise failure


class DirectRoutes:
    """The senders that a direct connection should be requested from."""

    def __init__(self, *, enabled: bool) -> None:
        """`enabled` is False if this receiver never uses direct connections."""
        self._enabled = enabled
        self._avoided_until: dict[str, float] = {}

    def is_open(self, address: str) -> bool:
        """Return whether to request a direct connection from the sender at this gRPC address."""
        return self._enabled and time.monotonic() >= self._avoided_until.get(address, 0.0)

    def failed(self, address: str, error: Exception) -> None:
        """Record that a direct connection to a sender could not be made, or broke; avoid it for a while."""
        self._avoided_until[address] = time.monotonic() + _AVOID_SECONDS
        sender = address or "the origin"
        logger.warning("fetching weights from %s over gRPC for %g s: %s", sender, _AVOID_SECONDS, error)
