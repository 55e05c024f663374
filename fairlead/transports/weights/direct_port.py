"""The sender's side of direct connections: a TCP port that sends shard bytes to holders of a ticket.

The sender offers the port and a ticket in its reply to FetchShard. The call stays open until the transfer has
ended and reports its result, so only gRPC decides which callers may fetch, how many at once and for how long.
Nothing is encrypted: where TLS is on, no direct connection is offered. Knows neither shards nor messages.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Self

from fairlead.config.infrastructure import WeightsSection
from fairlead.errors import ConfigError, Unavailable
from fairlead.rpc.credentials import host_of
from fairlead.transports.weights.direct import DirectConnection
from fairlead.types.weights import DirectOffer

_TICKET_BYTES = 32
_TICKET_SECONDS = 5.0
"""Time for a connection to show its ticket, and for the holder of a ticket to connect."""
_MAX_UNIDENTIFIED = 64
"""Connections that have not shown a ticket yet."""
_BLOCK_BYTES = 1 << 20
"""Bytes read and sent at a time: a block stays in the processor's cache between the two."""


class DirectPort:
    """The listening port; an async context manager. Belongs to one event loop."""

    def __init__(self, bind: str, section: WeightsSection) -> None:
        """
        Args:
            bind: `host:port` of the gRPC server; this port listens on the same host.
            section: its `direct_port`, and limits.
        """
        self.port = section.direct_port
        """TCP port; the real one, instead of 0, once it listens."""
        self._host = host_of(bind)
        self._timeout_seconds = section.stall_seconds / 2
        self._threads = ThreadPoolExecutor(2 * section.relay_fan_out, "direct")
        self._server: asyncio.Server | None = None
        self._transfers: dict[bytes, DirectTransfer] = {}
        self._unidentified = 0

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            ConfigError: if the port is in use.
        """
        try:
            self._server = await asyncio.start_server(
                self._accept, self._host, self.port, limit=_TICKET_BYTES
            )
        except OSError as error:
            got = f"{self.port} ({error.strerror or error})"
            raise ConfigError("weights.direct_port", got=got, allowed="a free port, or 0") from error
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening. Transfers in progress end with their calls."""
        if self._server is not None:
            self._server.close()
        self._threads.shutdown(wait=False)

    @contextmanager
    def transfer(self) -> Iterator[DirectTransfer]:
        """Offer one transfer; the offer is valid until the block ends."""
        ticket = secrets.token_bytes(_TICKET_BYTES)
        transfer = DirectTransfer(DirectOffer("", self.port, ticket), self._threads)
        self._transfers[ticket] = transfer
        try:
            yield transfer
        finally:
            self._transfers.pop(ticket, None)
            transfer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand a connection that shows a ticket to its transfer; close every other connection."""
        try:
            if self._unidentified >= _MAX_UNIDENTIFIED:
                return
            self._unidentified += 1
            try:
                async with asyncio.timeout(_TICKET_SECONDS):
                    transfer = self._transfers.pop(await reader.readexactly(_TICKET_BYTES), None)
            finally:
                self._unidentified -= 1
            if transfer is not None:
                accepted = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))
                transfer.accept(DirectConnection(accepted, timeout_seconds=self._timeout_seconds))
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            return
        finally:
            writer.transport.abort()


class DirectTransfer:
    """One transfer over a direct connection."""

    def __init__(self, offer: DirectOffer, threads: Executor) -> None:
        self.offer = offer
        self._threads = threads
        self._connection: asyncio.Future[DirectConnection] = asyncio.get_running_loop().create_future()

    def accept(self, connection: DirectConnection) -> None:
        """Use a connection on which the ticket was shown."""
        self._connection.set_result(connection)

    async def wait_connected(self) -> None:
        """Wait until the receiver has connected.

        Raises:
            Unavailable: if it does not connect in time.
        """
        try:
            async with asyncio.timeout(_TICKET_SECONDS):
                await asyncio.shield(self._connection)
        except TimeoutError as error:
            raise Unavailable(
                f"no receiver connected to port {self.offer.port} within {_TICKET_SECONDS:g} s"
            ) from error

    async def send(self, descriptor: int, offset: int, length: int) -> int:
        """Send a range of a file. Return how many bytes the file had of it.

        Raises:
            Unavailable: if the connection breaks, or the receiver accepts nothing for too long.
        """
        connection = self._connection.result()
        try:
            return await connection.run(
                lambda: _send(connection.socket, descriptor, offset, length), self._threads
            )
        except OSError as error:
            raise Unavailable(f"the direct connection broke: {error}") from error

    def close(self) -> None:
        """Close the connection; bytes that the kernel has accepted are still sent."""
        if not self._connection.cancel():
            self._connection.result().close()


def _send(connection: socket.socket, descriptor: int, offset: int, length: int) -> int:
    buffer = memoryview(bytearray(min(length, _BLOCK_BYTES)))
    sent = 0
    while sent < length:
        count = os.preadv(descriptor, [buffer[: length - sent]], offset + sent)
        if not count:
            break
        connection.sendall(buffer[:count])
        sent += count
    return sent


@asynccontextmanager
async def open_direct_port(
    bind: str, section: WeightsSection, *, encrypted: bool
) -> AsyncIterator[DirectPort | None]:
    """Open the direct port of a sender whose gRPC server listens on `bind`.

    Yields None if `weights.direct` is off, or if the gRPC server is encrypted.

    Raises:
        ConfigError: if the port is in use.
    """
    if encrypted or not section.direct:
        yield None
    else:
        async with DirectPort(bind, section) as port:
            yield port
