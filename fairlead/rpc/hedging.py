"""When an answer is so late that another replica is asked as well, and the first of the two counts.

Dean and Barroso, The Tail at Scale (2013), hedged requests. For calls that may be made twice. Beneath
`fairlead/rpc/channel.py`; knows no replica and no message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

_T = TypeVar("_T")

_KNOWN_CALLS = 5
"""Answers from which the usual time is known."""
_LEAST_SECONDS = 1.0
"""Nothing is late before that."""
_WEIGHT = 0.1
"""Of the newest answer in the mean."""


class Hedging:
    """The usual time of the calls to one service."""

    def __init__(self, factor: float) -> None:
        """`factor`: a call that has taken so many times the usual is late; 0: none ever is."""
        self._factor = factor
        self._mean = 0.0
        self._count = 0

    def learn(self, seconds: float) -> None:
        """An answer took so long."""
        self._count += 1
        self._mean += max(_WEIGHT, 1 / self._count) * (seconds - self._mean)

    @property
    def late_seconds(self) -> float | None:
        """How long a call may take until it is late; None if that is not known."""
        if not self._factor or self._count < _KNOWN_CALLS:
            return None
        return max(_LEAST_SECONDS, self._factor * self._mean)

    async def first_of(self, first: Awaitable[_T], another: Callable[[], Awaitable[_T] | None]) -> _T:
        """The first answer that is none of an error; `another` is called when `first` is late.

        Raises:
            Exception: the last, if both fail.
        """
        late = self.late_seconds
        if late is None:
            return await first
        asked = [asyncio.ensure_future(first)]
        try:
            done, _ = await asyncio.wait(asked, timeout=late)
            if not done and (second := another()) is not None:
                asked.append(asyncio.ensure_future(second))
            pending = set(asked)
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                good = next((one for one in done if not one.exception()), None)
                if good is not None or not pending:
                    return (good or done.pop()).result()
        finally:
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
