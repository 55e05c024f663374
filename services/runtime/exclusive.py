"""Lets calls in, and one that is to be alone only when no other is: then nobody joins it.

Stands before the micro-batcher of reward and reference, in the event loop; a call passes it before anything
of it is read. Knows no message.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from services.runtime.solitude import Solitude

_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class _Call:
    """One call, inside or before the gate."""

    closed: bool = False


class Gate:
    """Who is inside. Belongs to one event loop."""

    def __init__(self) -> None:
        self._solitude = Solitude[_Call]()
        self._inside: set[_Call] = set()
        self._waiting: set[asyncio.Future[None]] = set()

    async def through(self, work: Callable[[], Awaitable[_T]], *, exclusive: bool = False) -> _T:
        """What the work of a call comes to; it begins once the call may be inside.

        Raises:
            Overloaded: if it is to be alone and is not; its place is kept until it comes back.
        """
        call = _Call()
        if exclusive:
            self._solitude.claim(call, busy=bool(self._inside), served=True)
        try:
            while not self._solitude.lets_in(itertools.chain(self._inside, (call,))):
                await self._change()
            self._inside.add(call)
            return await work()
        finally:
            call.closed = True
            self._inside.discard(call)
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(None)

    async def _change(self) -> None:
        """Waits until a call has left, or a place is not kept any longer."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await asyncio.wait({waiting}, timeout=self._solitude.held_seconds() or None)
        finally:
            self._waiting.discard(waiting)
