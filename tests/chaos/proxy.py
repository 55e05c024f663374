"""A TCP proxy between two processes that can inject faults: cut, stall, latency, low bandwidth.

Modelled on toxiproxy. Runs in the event loop of its caller; knows nothing about the bytes that it forwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator

_CHUNK_BYTES = 65_536
_MAX_DELAYED_CHUNKS = 256
"""A direction holds this many delayed chunks, then stops reading, as a full network buffer would."""


class Proxy:
    """Listens on the loopback interface and forwards every connection to one target."""

    def __init__(self, host: str, port: int, *, listens: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        """`listens`: address and port to listen on; port 0 is any free one."""
        self._target = (host, port)
        self._host, self._port = listens
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._carried: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.latency_seconds = 0.0
        """Delay that is added in each direction."""
        self.bytes_per_second = 0
        """Bandwidth limit of each direction of each connection; 0 for no limit."""
        self.carried_bytes = 0
        """Bytes forwarded so far, in both directions."""

    @property
    def address(self) -> str:
        """`host:port` to connect to instead of the target."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen; after `cut`, on the same port as before."""
        self._server = await asyncio.start_server(self._accept, self._host, self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Reset every connection and refuse new ones, until `start`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            # Without lingering, the other side gets a reset instead of a normal end of the connection.
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        while self._carried:
            await asyncio.wait(set(self._carried))

    def stall(self) -> None:
        """Accept all bytes but forward none, silently, until `flow`."""
        self._flowing.clear()

    def flow(self) -> None:
        """End a stall; forward the delayed bytes."""
        self._flowing.set()

    async def heal(self) -> None:
        """End all faults; connections that were cut are not restored."""
        self.latency_seconds = 0.0
        self.bytes_per_second = 0
        self.flow()
        if self._server is None:
            await self.start()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carried.add(task)
        try:
            await self._carry(reader, writer)
        finally:
            self._carried.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._closing(writer):
            try:
                far_reader, far_writer = await asyncio.open_connection(*self._target)
            except OSError:
                writer.transport.abort()
                return
            async with self._closing(far_writer):
                directions = [
                    asyncio.ensure_future(self._pump(reader, far_writer)),
                    asyncio.ensure_future(self._pump(far_reader, writer)),
                ]
                # When one side closes, both are closed: gRPC and Redis have no half-closed connections.
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _closing(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        self._open.add(writer)
        try:
            yield
        finally:
            self._open.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        delayed: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_DELAYED_CHUNKS)
        arriving = asyncio.ensure_future(self._read(reader, delayed))
        try:
            while True:
                due, chunk = await delayed.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if self.bytes_per_second:
                    await asyncio.sleep(len(chunk) / self.bytes_per_second)
                await self._flowing.wait()
                if not chunk:
                    return
                writer.write(chunk)
                self.carried_bytes += len(chunk)
                await writer.drain()
        except OSError:
            return
        finally:
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)

    async def _read(self, reader: asyncio.StreamReader, to: asyncio.Queue[tuple[float, bytes]]) -> None:
        chunk = b"."
        while chunk:
            try:
                chunk = await reader.read(_CHUNK_BYTES)
            except OSError:
                chunk = b""
            await to.put((time.monotonic() + self.latency_seconds, chunk))
