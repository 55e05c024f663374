"""One long piece of work over several streams at once, so that every replica has its share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Generic, TypeVar

_Input = TypeVar("_Input")
_Outcome = TypeVar("_Outcome")
_Stream = Callable[[AsyncIterator[_Input]], AsyncIterator[tuple[int, _Outcome]]]


async def fanned(
    inputs: AsyncIterator[_Input], stream: _Stream[_Input, _Outcome], *, streams: int
) -> AsyncGenerator[tuple[int, _Outcome], None]:
    """Index and outcome of every input, in any order; each stream takes the next input when it has room.

    Args:
        inputs: what is asked.
        stream: does the work on a stream of its own; gives places in what it was handed, and outcomes.
        streams: how many.

    Raises:
        Exception: of the first stream that fails.
    """
    outcomes: asyncio.Queue[tuple[int, _Outcome] | Exception | None] = asyncio.Queue(maxsize=2 * streams)
    shared = _Shared(inputs)

    async def run() -> None:
        indices: list[int] = []
        found: Any = stream(shared.share(indices))
        try:
            async with aclosing(found):
                async for place, outcome in found:
                    await outcomes.put((indices[place], outcome))
        except Exception as error:  # noqa: BLE001 - raised where outcomes are taken
            await outcomes.put(error)
        else:
            await outcomes.put(None)

    tasks = [asyncio.create_task(run()) for _ in range(streams)]
    try:
        while streams:
            outcome = await outcomes.get()
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is None:
                streams -= 1
            else:
                yield outcome
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Shared(Generic[_Input]):
    """Inputs that several take from, one at a time."""

    def __init__(self, inputs: AsyncIterator[_Input]) -> None:
        self._inputs = inputs
        self._reading = asyncio.Lock()
        self._count = 0

    async def share(self, indices: list[int]) -> AsyncIterator[_Input]:
        """The next input whenever one is wanted; its index is noted."""
        while True:
            async with self._reading:
                try:
                    one = await anext(self._inputs)
                except StopAsyncIteration:
                    return
                indices.append(self._count)
                self._count += 1
            yield one
