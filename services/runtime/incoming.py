"""The requests of a stream that a client sends, parsed one by one as they are asked for.

Between grpc.aio and a servicer, which reads no faster than it works: what is not asked for stays with the
client (HTTP/2 flow control). When the server drains no more is read; what was read is still answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Self

from fairlead.errors import Unavailable


class Incoming:
    """An async iterator of requests."""

    def __init__(
        self, bodies: AsyncIterator[bytes], *, parse: Callable[[bytes], object], closing: asyncio.Event
    ) -> None:
        """
        Args:
            bodies: what the client sends.
            parse: makes a request of it, or raises InvalidInput.
            closing: set when the server drains.
        """
        self._bodies = bodies
        self._parse = parse
        self._closing = closing
        self._closed: asyncio.Task[None] | None = None
        self._read: asyncio.Task[bytes | None] | None = None
        self._is_cut = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> object:
        """The next request; ends when the client has sent its last, or the server drains.

        Raises:
            InvalidInput: for bytes that are no message of this RPC.
        """
        if self._closed is None:
            self._closed = asyncio.create_task(_wait(self._closing))
        if self._read is None:
            self._read = asyncio.create_task(_next(self._bodies))
        if not self._closing.is_set():
            await asyncio.wait([self._read, self._closed], return_when=asyncio.FIRST_COMPLETED)
        if not self._read.done():
            self._is_cut = True
            raise StopAsyncIteration
        read, self._read = self._read, None
        body = read.result()
        if body is None:
            raise StopAsyncIteration
        return self._parse(body)

    def check_whole(self) -> None:
        """To be called when everything that was read is answered.

        Raises:
            Unavailable: if the client had more to send.
        """
        if self._is_cut:
            raise Unavailable("the server is draining; what is not answered is to be sent to another")

    def close(self) -> None:
        """Reads no more."""
        for task in (self._closed, self._read):
            if task is not None:
                task.cancel()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _next(bodies: AsyncIterator[bytes]) -> bytes | None:
    # StopAsyncIteration cannot be the result of a task.
    return await anext(bodies, None)
