"""Streams: read requests until the server drains, process them concurrently, yield responses as they finish.

Sits between grpc.aio and a servicer. Back-pressure: a request is read only when it can be processed, so
HTTP/2 flow control holds the client back. Knows nothing about messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from fairlead.errors import Unavailable

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits on the requests of one stream in progress: read, and their response not yet sent."""

    max_requests: int
    """Limit on the number of requests."""
    max_bytes: int
    """Limit on their total size; a single larger request is processed by itself."""


class _InProgress:
    """Requests in progress, counted against the bounds; a single reader waits for capacity."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._requests = 0
        self._bytes = 0
        self._released = asyncio.Event()

    async def acquire(self, size: int) -> None:
        while self._requests and (
            self._requests >= self._bounds.max_requests or self._bytes + size > self._bounds.max_bytes
        ):
            self._released.clear()
            await self._released.wait()
        self._requests += 1
        self._bytes += size

    def release(self, size: int) -> None:
        self._requests -= 1
        self._bytes -= size
        self._released.set()


async def process_bounded(
    requests: AsyncIterator[_Request],
    process: Callable[[_Request], Awaitable[_Response]],
    *,
    size: Callable[[_Request], int],
    bounds: Bounds,
    in_order: bool = False,
) -> AsyncGenerator[_Response, None]:
    """Process all requests concurrently within bounds, and yield each response when it is ready.

    Args:
        requests: read while the bounds allow it.
        process: processes one request; an exception ends the whole stream.
        size: returns the bytes of a request.
        bounds: limits on the requests in progress.
        in_order: yield responses in the order of the requests.

    Raises:
        Exception: the exception from reading a request, after all earlier requests got their response.
    """
    in_progress = _InProgress(bounds)
    sizes: dict[asyncio.Future[_Response], int] = {}
    finished: asyncio.Queue[asyncio.Future[_Response] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for request in requests:
                taken = size(request)
                await in_progress.acquire(taken)
                task = asyncio.ensure_future(process(request))
                sizes[task] = taken
                if in_order:
                    finished.put_nowait(task)
                else:
                    task.add_done_callback(finished.put_nowait)
        finally:
            finished.put_nowait(None)

    reader = asyncio.create_task(read())
    reading = True
    try:
        while reading or sizes:
            task = await finished.get()
            if task is None:
                reading = False
                continue
            yield await task
            in_progress.release(sizes.pop(task))
        await reader
    finally:
        reader.cancel()
        for task in sizes:
            task.cancel()
        await asyncio.gather(reader, *sizes, return_exceptions=True)


async def as_finished(
    work: Iterable[Coroutine[Any, Any, _Response]],
) -> AsyncGenerator[list[_Response], None]:
    """Run all coroutines concurrently and yield their results, those together that are there together.

    Closing the generator cancels what has not finished.

    Raises:
        Exception: the exception of one of them; the others are cancelled.
    """
    finished: asyncio.Queue[asyncio.Task[_Response]] = asyncio.Queue()
    tasks = {asyncio.create_task(each) for each in work}
    for task in tasks:
        task.add_done_callback(finished.put_nowait)
    try:
        while tasks:
            ready = [await finished.get()]
            while not finished.empty():
                ready.append(finished.get_nowait())
            tasks.difference_update(ready)
            yield [task.result() for task in ready]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class IncomingRequests:
    """Async iterator over the requests that a client sends, parsed on demand until the server drains."""

    def __init__(
        self,
        bodies: AsyncIterator[bytes],
        *,
        parse: Callable[[bytes], Awaitable[object]],
        draining: asyncio.Event,
    ) -> None:
        """
        Args:
            bodies: serialized requests from the client.
            parse: parses a request; raises InvalidInput.
            draining: set when the server drains.
        """
        self._bodies = bodies
        self._parse = parse
        self._draining = draining
        self._drain_task: asyncio.Task[None] | None = None
        self._read_task: asyncio.Task[bytes | None] | None = None
        self._cut = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> object:
        """Return the next request; stop after the client's last request, or when the server drains.

        Raises:
            InvalidInput: if the bytes cannot be parsed as a request of this RPC.
        """
        if self._drain_task is None:
            self._drain_task = asyncio.create_task(_wait(self._draining))
        if self._read_task is None:
            self._read_task = asyncio.create_task(_next(self._bodies))
        if not self._draining.is_set():
            await asyncio.wait([self._read_task, self._drain_task], return_when=asyncio.FIRST_COMPLETED)
        if not self._read_task.done():
            self._cut = True
            raise StopAsyncIteration
        finished = self._read_task
        self._read_task = None
        body = finished.result()
        if body is None:
            raise StopAsyncIteration
        return await self._parse(body)

    def check_complete(self) -> None:
        """Check, once all requests got their response, that the client had no more to send.

        Raises:
            Unavailable: if the drain ended the stream before the client did.
        """
        if self._cut:
            raise Unavailable("the server is draining; send the unanswered requests to another server")

    def close(self) -> None:
        """Stop reading."""
        for task in (self._drain_task, self._read_task):
            if task is not None:
                task.cancel()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _next(bodies: AsyncIterator[bytes]) -> bytes | None:
    # A task cannot raise StopAsyncIteration.
    return await anext(bodies, None)
