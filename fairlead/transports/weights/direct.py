"""Bytes of shards over a plain TCP connection beside gRPC: several times the rate, for less CPU time.

A sender offers it as the answer to FetchShard: a port, and a ticket that is good for that one call. Who
connects and shows the ticket gets the bytes that the call asked for; the call lasts as long, and ends with
what became of them. So who may fetch, how many at once and for how long is decided by gRPC alone. Nothing is
encrypted: where there is TLS, it is not offered. Knows neither shards nor messages.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Self

from fairlead.config.weights import WeightsSection
from fairlead.errors import ConfigError, Unavailable
from fairlead.relay import DirectOffer

logger = logging.getLogger(__name__)

_TICKET_BYTES = 32
_SHOW_SECONDS = 5.0
"""Whoever connects shows a ticket within so long, and whoever holds one connects."""
_CONNECT_SECONDS = 2.0
_MAX_STRANGERS = 64
"""Connections that have shown no ticket yet."""
_AVOID_SECONDS = 60.0
"""A host whose direct port failed is asked by gRPC alone for so long."""


class DirectPort:
    """The sender's side; an async context manager. Belongs to one event loop."""

    def __init__(self, bind: str, port: int) -> None:
        """
        Args:
            bind: `host:port` of the gRPC server; the host is listened on here, too.
            port: to listen on; 0 takes any that is free.
        """
        self._host = bind.rpartition(":")[0].strip("[]")
        self._port = port
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
                self._welcome, self._host, self._port, limit=_TICKET_BYTES, reuse_address=True
            )
        except OSError as error:
            got = f"{self._port} ({error.strerror or error})"
            raise ConfigError("weights.direct_port", got=got, allowed="a port that is free, or 0") from error
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Listens no more. What is being sent ends with its call."""
        if self._server is not None:
            self._server.close()

    @contextmanager
    def place(self) -> Iterator[Place]:
        """For one transfer, for as long as the block lasts."""
        ticket = secrets.token_bytes(_TICKET_BYTES)
        place = Place(DirectOffer("", self._port, ticket))
        self._places[ticket] = place
        try:
            yield place
        finally:
            self._places.pop(ticket, None)
            place.close()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hands a connection that shows a ticket to its place, and closes every other one."""
        place = None
        if self._strangers < _MAX_STRANGERS:
            self._strangers += 1
            try:
                async with asyncio.timeout(_SHOW_SECONDS):
                    place = self._places.pop(await reader.readexactly(_TICKET_BYTES), None)
            except (TimeoutError, asyncio.IncompleteReadError, OSError):
                pass
            finally:
                self._strangers -= 1
        if place is not None:
            place.take(writer)
        else:
            writer.transport.abort()


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
        async with DirectPort(bind, section.direct_port) as port:
            yield port


class Place:
    """Of one transfer at a direct port."""

    def __init__(self, offer: DirectOffer) -> None:
        self.offer = offer
        self._coming: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    def take(self, writer: asyncio.StreamWriter) -> None:
        """The ticket was shown on this connection."""
        self._coming.set_result(writer)

    async def connection(self) -> asyncio.WriteTransport:
        """The connection, once somebody has come.

        Raises:
            Unavailable: if nobody comes.
        """
        try:
            async with asyncio.timeout(_SHOW_SECONDS):
                return (await asyncio.shield(self._coming)).transport
        except TimeoutError as error:
            raise Unavailable(f"nobody came to port {self.offer.port} for the bytes") from error

    def close(self) -> None:
        """Closes the connection; what the system has been handed still goes out."""
        if not self._coming.cancel():
            self._coming.result().transport.abort()


@asynccontextmanager
async def connected(offer: DirectOffer, *, stall_seconds: float) -> AsyncIterator[socket.socket]:
    """A connection that gets the bytes, for a thread that reads it; `stall_seconds` becomes its timeout.

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
    failure: OSError = OSError("no address")
    for family, kind, protocol, _, place in await loop.getaddrinfo(
        offer.host, offer.port, type=socket.SOCK_STREAM
    ):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, place)
            await loop.sock_sendall(connection, offer.ticket)
        except OSError as error:
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure


class Routes:
    """Which addresses are worth a direct connection, as far as their clients have seen."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._avoided_until: dict[str, float] = {}

    def is_open(self, address: str) -> bool:
        """Whether to ask this gRPC address for one."""
        return self._wanted and time.monotonic() >= self._avoided_until.get(address, 0.0)

    def failed(self, address: str, error: Exception) -> None:
        """A direct connection to it could not be made, or broke."""
        self._avoided_until[address] = time.monotonic() + _AVOID_SECONDS
        logger.warning("weights come over gRPC for %g s: %s", _AVOID_SECONDS, error)
