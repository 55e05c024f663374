"""What a caller hands over to be worked on piece by piece, whichever kind of iterable it is."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TypeVar

_Input = TypeVar("_Input")


async def each(inputs: Iterable[_Input] | AsyncIterable[_Input]) -> AsyncIterator[_Input]:
    """One after the other."""
    if isinstance(inputs, AsyncIterable):
        async for one in inputs:
            yield one
    else:
        for one in inputs:
            yield one
