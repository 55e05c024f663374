"""Streams of requests that are worked on side by side: a bound on what is in work, and patience when full.

Between a servicer's stream and what answers one request. Back-pressure: while the bound is reached nothing
more is read, and gRPC's flow control holds the client back. Knows no message.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from fairlead.errors import Overloaded

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one stream may have in work: read, and its answer not yet taken by the transport."""

    max_requests: int
    """Requests at most."""
    max_bytes: int
    """Bytes of them at most; a single larger one is worked on alone."""


class _Room:
    """How much of the bounds is taken; one reader waits for it."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._requests = 0
        self._bytes = 0
        self._given = asyncio.Event()

    async def take(self, size: int) -> None:
        while self._requests and (
            self._requests >= self._bounds.max_requests or self._bytes + size > self._bounds.max_bytes
        ):
            self._given.clear()
            await self._given.wait()
        self._requests += 1
        self._bytes += size

    def give(self, size: int) -> None:
        self._requests -= 1
        self._bytes -= size
        self._given.set()


async def answers(
    requests: AsyncIterator[_Request],
    answer: Callable[[_Request], Awaitable[_Answer]],
    *,
    size: Callable[[_Request], int],
    bounds: Bounds,
    in_order: bool = False,
) -> AsyncGenerator[_Answer, None]:
    """Answers of all requests, each as soon as there is one.

    Args:
        requests: read while there is room.
        answer: one request's; raises only what shall end the whole stream.
        size: bytes of a request.
        bounds: of what is in work.
        in_order: keep the answers in the order of the requests.

    Raises:
        Exception: what reading a request raised, once everything before it is answered.
    """
    room = _Room(bounds)
    sizes: dict[asyncio.Future[_Answer], int] = {}
    finished: asyncio.Queue[asyncio.Future[_Answer] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for request in requests:
                taken = size(request)
                await room.take(taken)
                task = asyncio.ensure_future(answer(request))
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
            room.give(sizes.pop(task))
        await reader
    finally:
        reader.cancel()
        for task in sizes:
            task.cancel()
        await asyncio.gather(reader, *sizes, return_exceptions=True)


async def patiently(work: Callable[[], Awaitable[_Answer]], *, deadline: float | None) -> _Answer:
    """Does the work; while the server is full it waits as long as it was told to, and tries again.

    Args:
        work: raises Overloaded where there is no room.
        deadline: on the clock of `time.monotonic`; None waits for ever.

    Raises:
        Overloaded: if there would be no time left after the wait.
    """
    while True:
        try:
            return await work()
        except Overloaded as error:
            # Jitter, or all that were refused together would come back together.
            delay = error.retry_after_seconds * random.uniform(1.0, 1.5)
            if deadline is not None and time.monotonic() + delay >= deadline:
                raise
        await asyncio.sleep(delay)
