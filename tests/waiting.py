"""Wait for a condition with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Return when the condition holds.

    Raises:
        TimeoutError: if it does not hold within the given seconds.
    """
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition changes elsewhere without a notification
            await asyncio.sleep(0.005)


def eventually(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Return when a condition holds that other threads bring about; see `until`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)
