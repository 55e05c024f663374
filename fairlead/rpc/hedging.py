"""Hedged requests: a late call is sent to another replica as well, and the first result counts.

After Dean and Barroso, The Tail at Scale (2013). For idempotent calls. Used by `fairlead/rpc/replicas.py`;
knows nothing about replicas or messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

_T = TypeVar("_T")

_MIN_CALLS = 5
"""Calls needed before the mean is used."""
_MIN_SECONDS = 1.0
"""No call is late before this time."""
_WEIGHT = 0.1
"""Weight of the newest call in the mean."""


class Hedging:
    """The mean time of the calls to one service, and the hedging of late calls."""

    def __init__(self, factor: float) -> None:
        """A call is late after `factor` times the mean; 0 disables hedging."""
        self._factor = factor
        self._mean = 0.0
        self._count = 0

    def record(self, seconds: float) -> None:
        """Add the time of a finished call to the mean."""
        self._count += 1
        self._mean += max(_WEIGHT, 1 / self._count) * (seconds - self._mean)

    @property
    def late_seconds(self) -> float | None:
        """Time after which a call is late; None if hedging is disabled or too few calls have finished."""
        if not self._factor or self._count < _MIN_CALLS:
            return None
        return max(_MIN_SECONDS, self._factor * self._mean)

    async def first_of(
        self,
        first: Awaitable[_T],
        another: Callable[[], Awaitable[_T] | None],
        *,
        on_won: Callable[[], None] = lambda: None,
    ) -> _T:
        """Return the first successful result; `another` starts a second call when `first` is late, and
        `on_won` is called if that one is first.

        Raises:
            Exception: the last error, if both calls fail.
        """
        late = self.late_seconds
        if late is None:
            return await first
        calls = [asyncio.ensure_future(first)]
        try:
            done, _ = await asyncio.wait(calls, timeout=late)
            if done:
                return calls[0].result()
            if (second := another()) is not None:
                calls.append(asyncio.ensure_future(second))
            pending = set(calls)
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                good = next((one for one in done if not one.exception()), None)
                if good is not None or not pending:
                    if good is not None and good is not calls[0]:
                        on_won()
                    return (good or done.pop()).result()
        finally:
            running = [one for one in calls if one.cancel()]
            if running:
                await asyncio.gather(*running, return_exceptions=True)
            for one in calls:
                if not one.cancelled():
                    one.exception()  # seen, though another call's result counts
