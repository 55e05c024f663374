"""Outcomes that come in any order, put in order; what waits for an earlier one is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

from fairlead.clients.inputs import each

_Input = TypeVar("_Input")
_Outcome = TypeVar("_Outcome")


async def in_order(
    inputs: Iterable[_Input] | AsyncIterable[_Input],
    work: Callable[[AsyncIterator[_Input]], AsyncIterator[tuple[int, _Outcome]]],
    *,
    ahead: int,
) -> AsyncGenerator[_Outcome, None]:
    """The outcomes in the order of their inputs.

    Args:
        inputs: read as outcomes are taken.
        work: gives each input's index and outcome, in any order, every one once.
        ahead: inputs at most that are read before the earliest outcome that is still missing is there.

    Raises:
        Exception: what reading the inputs or the work raised, after the outcomes before.
    """
    next_index = 0
    moved = asyncio.Event()

    async def gated() -> AsyncIterator[_Input]:
        index = 0
        async for one in each(inputs):
            while index - next_index >= ahead:
                moved.clear()
                await moved.wait()
            yield one
            index += 1

    waiting: dict[int, _Outcome] = {}
    outcomes: Any = work(gated())
    async with aclosing(outcomes):
        async for index, outcome in outcomes:
            waiting[index] = outcome
            while next_index in waiting:
                yield waiting.pop(next_index)
                next_index += 1
                moved.set()
