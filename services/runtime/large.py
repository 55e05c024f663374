"""Work on large requests runs in a thread, so that the event loop continues with other requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

LARGE_BYTES = 1 << 14
"""Size from which a request counts as large. Less takes at most a few milliseconds of the event
loop: tests/integration/test_hostile_requests.py.
"""


async def in_thread_if_large(work: Callable[[], _T], num_bytes: int) -> _T:
    """Return the result of `work`, which reads a request of `num_bytes`."""
    return work() if num_bytes < LARGE_BYTES else await asyncio.to_thread(work)
