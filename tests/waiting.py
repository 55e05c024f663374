"""Wait for a condition with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Return when the condition holds.

    Raises:
        TimeoutError: if it does not hold within the given seconds.
    """
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition changes elsewhere without a notification
            await asyncio.sleep(0.005)
