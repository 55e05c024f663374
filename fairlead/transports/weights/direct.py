"""Bytes of shards over a plain TCP connection beside gRPC: several times the rate, for less CPU time.

A sender offers it as the answer to FetchShard: a port, and a ticket that is good for that one call. Who
connects and shows the ticket gets the bytes that the call asked for; the call lasts as long, and ends with
what became of them. So who may fetch, how many at once and for how long is decided by gRPC alone. Nothing is
encrypted: where there is TLS, it is not offered. Knows neither shards nor messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Self, TypeVar

from fairlead.config.infrastructure import WeightsSection
from fairlead.errors import ConfigError, Unavailable
from fairlead.rpc.credentials import host_of
from fairlead.types.weights import DirectOffer

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_TICKET_BYTES = 32
_SHOW_SECONDS = 5.0
"""Whoever connects shows a ticket within so long, and whoever holds one connects."""
_CONNECT_SECONDS = 2.0
_MAX_STRANGERS = 64
"""Connections that have shown no ticket yet."""
_AVOID_SECONDS = 60.0
"""A sender whose direct port failed is asked over gRPC alone for so long."""
_BLOCK_BYTES = 1 << 20
"""Read and sent at a time: it stays in the processor's cache between the two."""


class DirectPort:
    """The sender's side; an async context manager. Belongs to one event loop."""

    def __init__(self, bind: str, section: WeightsSection) -> None:
        """
        Args:
            bind: `host:port` of the gRPC server; the host is listened on here, too.
            section: its `direct_port`, and limits.
        """
        self.port = section.direct_port
        """Where it listens, once it does."""
        self._host = host_of(bind)
        self._patience_seconds = section.stall_seconds / 2
        self._threads = ThreadPoolExecutor(2 * section.relay_fan_out, "direct")
        self._server: asyncio.Server | None = None
        self._places: dict[bytes, Place] = {}
        self._strangers = 0

    async def __aenter__(self) -> Self:
        """Listens.

        Raises:
            ConfigError: if the port is taken.
        """
        try:
            self._server = await asyncio.start_server(
                self._welcome, self._host, self.port, limit=_TICKET_BYTES
            )
        except OSError as error:
            got = f"{self.port} ({error.strerror or error})"
            raise ConfigError("weights.direct_port", got=got, allowed="a port that is free, or 0") from error
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Listens no more. What is being sent ends with its call."""
        if self._server is not None:
            self._server.close()
        self._threads.shutdown(wait=False)

    @contextmanager
    def place(self) -> Iterator[Place]:
        """For one transfer, for as long as the block lasts."""
        ticket = secrets.token_bytes(_TICKET_BYTES)
        place = Place(DirectOffer("", self.port, ticket), self._threads)
        self._places[ticket] = place
        try:
            yield place
        finally:
            self._places.pop(ticket, None)
            place.close()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hands a connection that shows a ticket to its place; every other one is closed."""
        try:
            if self._strangers >= _MAX_STRANGERS:
                return
            self._strangers += 1
            try:
                async with asyncio.timeout(_SHOW_SECONDS):
                    place = self._places.pop(await reader.readexactly(_TICKET_BYTES), None)
            finally:
                self._strangers -= 1
            if place is not None:
                connection = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))
                connection.settimeout(self._patience_seconds)
                place.take(connection)
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            return
        finally:
            writer.transport.abort()


class Place:
    """Of one transfer at a direct port."""

    def __init__(self, offer: DirectOffer, threads: Executor) -> None:
        self.offer = offer
        self._threads = threads
        self._coming: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()

    def take(self, connection: socket.socket) -> None:
        """The ticket was shown on this connection."""
        self._coming.set_result(connection)

    async def taken(self) -> None:
        """Waits for whoever holds the offer.

        Raises:
            Unavailable: if nobody comes.
        """
        try:
            async with asyncio.timeout(_SHOW_SECONDS):
                await asyncio.shield(self._coming)
        except TimeoutError as error:
            raise Unavailable(f"nobody came to port {self.offer.port} for the bytes") from error

    async def send(self, descriptor: int, offset: int, length: int) -> int:
        """A range of a file, to who has come. Returns how much there was of it.

        Raises:
            Unavailable: if the connection breaks, or takes nothing for too long.
        """
        connection = self._coming.result()
        try:
            return await in_thread(
                connection, lambda: _send(connection, descriptor, offset, length), self._threads
            )
        except OSError as error:
            raise Unavailable(f"the direct connection broke: {error}") from error

    def close(self) -> None:
        """Closes the connection; what the system has been handed still goes out."""
        if not self._coming.cancel():
            self._coming.result().close()


def _send(connection: socket.socket, descriptor: int, offset: int, length: int) -> int:
    buffer, sent = memoryview(bytearray(min(length, _BLOCK_BYTES))), 0
    while sent < length:
        count = os.preadv(descriptor, [buffer[: length - sent]], offset + sent)
        if not count:
            break
        connection.sendall(buffer[:count])
        sent += count
    return sent


@asynccontextmanager
async def listening(
    bind: str, section: WeightsSection, *, encrypted: bool
) -> AsyncIterator[DirectPort | None]:
    """The direct port of a sender whose gRPC server listens on `bind`; None where there is to be none.

    Raises:
        ConfigError: if the port is taken.
    """
    if encrypted or not section.direct:
        yield None
    else:
        async with DirectPort(bind, section) as port:
            yield port


@asynccontextmanager
async def connected(offer: DirectOffer, *, stall_seconds: float) -> AsyncIterator[socket.socket]:
    """A connection that gets the bytes, for a thread that reads it; `stall_seconds` is its timeout.

    Raises:
        Unavailable: if it cannot be made.
    """
    where = f"port {offer.port} of {offer.host}"
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            connection = await _connect(offer)
    except (OSError, TimeoutError) as error:
        raise Unavailable(f"{where} is not reached: {error or 'it does not answer'}") from error
    with connection:
        connection.settimeout(stall_seconds)
        yield connection


async def _connect(offer: DirectOffer) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure = OSError("no address")
    for family, kind, protocol, _, place in await loop.getaddrinfo(
        offer.host, offer.port, type=socket.SOCK_STREAM
    ):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, place)
            await loop.sock_sendall(connection, offer.ticket)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            failure = error
        else:
            return connection
    raise failure


async def in_thread(
    connection: socket.socket, function: Callable[[], _T], threads: Executor | None = None
) -> _T:
    """What a function returns that blocks on a connection.

    Who is cancelled meanwhile breaks the connection and then waits for the thread: descriptors that it uses
    may be closed only when it has ended.
    """
    work = asyncio.get_running_loop().run_in_executor(threads, function)
    try:
        return await asyncio.shield(work)
    finally:
        if not work.done():
            work.add_done_callback(lambda work: work.exception())
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work])


class Routes:
    """Which senders are worth a direct connection, as far as this client has seen."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._avoided_until: dict[str, float] = {}

    def is_open(self, address: str) -> bool:
        """Whether to ask the sender at this gRPC address for one."""
        return self._wanted and time.monotonic() >= self._avoided_until.get(address, 0.0)

    def failed(self, address: str, error: Exception) -> None:
        """A direct connection to it could not be made, or broke."""
        self._avoided_until[address] = time.monotonic() + _AVOID_SECONDS
        sender = address or "the origin"
        logger.warning("weights of %s come over gRPC for %g s: %s", sender, _AVOID_SECONDS, error)
