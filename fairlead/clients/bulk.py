"""Work on many inputs: spread over several streams, returned in order, with a progress bar.

Used by the reward client and by `fairlead score`. Knows nothing about services or messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_Input = TypeVar("_Input")
_Outcome = TypeVar("_Outcome")
_Stream = Callable[[AsyncIterator[_Input]], AsyncIterator[tuple[int, _Outcome]]]


async def each(inputs: Iterable[_Input] | AsyncIterable[_Input]) -> AsyncIterator[_Input]:
    """Yield the inputs of either kind of iterable."""
    if isinstance(inputs, AsyncIterable):
        async for one in inputs:
            yield one
    else:
        for one in inputs:
            yield one


async def in_order(
    inputs: Iterable[_Input] | AsyncIterable[_Input], work: _Stream[_Input, _Outcome], *, ahead: int
) -> AsyncGenerator[_Outcome, None]:
    """Yield the outcomes in the order of their inputs.

    Args:
        inputs: read as outcomes are taken.
        work: yields the index and outcome of every input once, in any order.
        ahead: largest number of inputs read before the outcome of the earliest one is available.

    Raises:
        Exception: raised by the inputs or the work, after the outcomes before it.
    """
    next_index = 0
    moved = asyncio.Event()

    async def limited() -> AsyncIterator[_Input]:
        index = 0
        async for one in each(inputs):
            while index - next_index >= ahead:
                moved.clear()
                await moved.wait()
            yield one
            index += 1

    waiting: dict[int, _Outcome] = {}
    outcomes: Any = work(limited())
    async with aclosing(outcomes):
        async for index, outcome in outcomes:
            waiting[index] = outcome
            while next_index in waiting:
                yield waiting.pop(next_index)
                next_index += 1
                moved.set()


async def fan_out(
    inputs: AsyncIterator[_Input], stream: _Stream[_Input, _Outcome], *, streams: int
) -> AsyncGenerator[tuple[int, _Outcome], None]:
    """Spread the inputs over several streams and yield the index and outcome of each, in any order.

    Each stream takes the next input when it can accept one, so that every replica gets its share.

    Args:
        inputs: read one at a time.
        stream: works on the inputs of one stream; yields an input's position in that stream, and its outcome.
        streams: number of streams.

    Raises:
        Exception: of the first stream that fails.
    """
    outcomes: asyncio.Queue[tuple[int, _Outcome] | Exception | None] = asyncio.Queue(maxsize=2 * streams)
    shared = _SharedInputs(inputs)

    async def run() -> None:
        indices: list[int] = []
        found: Any = stream(shared.take(indices))
        try:
            async with aclosing(found):
                async for position, outcome in found:
                    await outcomes.put((indices[position], outcome))
        except Exception as error:  # noqa: BLE001 - raised to the caller of fan_out
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


class _SharedInputs(Generic[_Input]):
    """Inputs taken by several streams, one at a time."""

    def __init__(self, inputs: AsyncIterator[_Input]) -> None:
        self._inputs = inputs
        self._reading = asyncio.Lock()
        self._count = 0

    async def take(self, indices: list[int]) -> AsyncIterator[_Input]:
        """Yield the next input on demand and append its index to `indices`."""
        while True:
            async with self._reading:
                try:
                    one = await anext(self._inputs)
                except StopAsyncIteration:
                    return
                indices.append(self._count)
                self._count += 1
            yield one


@contextmanager
def progress_bar(
    name: str, *, total: int | None, shown: bool, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error; yield a function that advances it by a count.

    Args:
        name: text of the bar.
        total: number of steps; None if unknown.
        shown: whether to show the bar; it is never shown without a terminal.
        done: number of steps already done.
    """
    console = Console(stderr=True)
    columns = TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda count: bar.advance(task, count)
