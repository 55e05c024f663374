"""A TCP proxy between two processes that can be told to misbehave: cut, silence, latency, little bandwidth.

The idea is toxiproxy's. Runs in the event loop of whoever starts it; knows nothing of what it carries.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator

_CHUNK_BYTES = 65_536
_CHUNKS_UNDER_WAY = 256
"""A direction holds this many chunks while they are late, then stops reading, as a full network would."""


class Proxy:
    """Listens on the loopback and carries every connection to one target."""

    def __init__(self, host: str, port: int, *, listens: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        """`listens` has the address and the port; 0 is any that is free."""
        self._target = host, port
        self._host, self._port = listens
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._carried: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.latency_seconds = 0.0
        """Added in each direction."""
        self.bytes_per_second = 0
        """Limit of each direction of each connection; 0 is none."""
        self.carried_bytes = 0
        """In both directions, so far."""

    @property
    def address(self) -> str:
        """`host:port` to connect to instead of the target."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Listens; after `cut` again, on the same port."""
        self._server = await asyncio.start_server(self._accept, self._host, self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Resets every connection and refuses new ones, until `start`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            # Without lingering the peer is told by a reset, not by a polite end.
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        while self._carried:
            await asyncio.wait(set(self._carried))

    def stall(self) -> None:
        """Takes everything and passes nothing on, without a word, until `flow`."""
        self._flowing.clear()

    def flow(self) -> None:
        """Passes on what a stall has held up."""
        self._flowing.set()

    async def heal(self) -> None:
        """As if nothing had happened; connections that were cut stay cut."""
        self.latency_seconds, self.bytes_per_second = 0.0, 0
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
                # Either side's end is the end of both: gRPC and Redis have no half-closed connections.
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
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_UNDER_WAY)
        arriving = asyncio.ensure_future(self._read(reader, under_way))
        try:
            while True:
                due, chunk = await under_way.get()
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
