"""Exclusive requests: run one request while no other runs, so that a crash is attributed to that request.

`ExclusiveSlot` holds the rules; the policy's engine uses it under its own lock. `ExclusiveGate` applies them
in an event loop, in front of the micro-batchers of the reward and reference services, before a request is
read. Knows nothing about messages or models.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from fairlead.errors import Overloaded

_RESERVED_SECONDS = 2.0
"""After a refusal, new requests wait this long so that the refused request finds the replica idle on its
retry."""
_RETRY_SECONDS = 0.2
_SETTLE_SECONDS = 0.1
"""Pause before an exclusive request starts: replies to requests refused at the same moment must leave first,
because the exclusive request may kill the replica."""


class Closable(Protocol):
    """A request as `ExclusiveSlot` sees it."""

    closed: bool
    """Finished, failed or cancelled."""


_Request = TypeVar("_Request", bound=Closable)
_T = TypeVar("_T")


class ExclusiveSlot(Generic[_Request]):
    """Holds at most one exclusive request, and decides which requests may start. Not thread-safe."""

    def __init__(self) -> None:
        self._holder: _Request | None = None
        self._reserved_until = 0.0

    @property
    def holder(self) -> _Request | None:
        """The exclusive request that runs or is about to start."""
        if self._holder is not None and self._holder.closed:
            self._holder = None
        return self._holder

    def claim(self, request: _Request, *, busy: bool, served: bool) -> None:
        """Give the slot to a request, or refuse it and reserve the replica for its retry.

        Args:
            request: the exclusive request.
            busy: whether any request is running.
            served: whether the weights in use are new enough for the request.

        Raises:
            Overloaded: if the request must be retried later.
        """
        if busy or not served or self.holder is not None:
            if served and self.holder is None:
                self._reserved_until = time.monotonic() + _RESERVED_SECONDS
            raise Overloaded(
                "exclusive request refused: other requests are still running",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self._holder = request
        self._reserved_until = time.monotonic() + _SETTLE_SECONDS

    def admits(self, running: Iterable[_Request]) -> bool:
        """Return whether a request may join those running: not while reserved, nor next to the holder."""
        if self.reserved_seconds():
            return False
        return self.holder is None or all(request is self.holder for request in running)

    def reserved_seconds(self) -> float:
        """Return for how long no request may start, because of a reservation or the holder's pause; 0 if
        none.
        """
        return max(0.0, self._reserved_until - time.monotonic())


@dataclass(slots=True, eq=False)
class _Call:
    """One call that waits at the gate or runs."""

    closed: bool = False


class ExclusiveGate:
    """Runs calls concurrently, and an exclusive call only while no other runs. Belongs to one event loop."""

    def __init__(self) -> None:
        self._slot = ExclusiveSlot[_Call]()
        self._running: set[_Call] = set()
        self._waiting: set[asyncio.Future[None]] = set()

    async def run(self, work: Callable[[], Awaitable[_T]], *, exclusive: bool = False) -> _T:
        """Run the work of a call once it may start, and return its result.

        Raises:
            Overloaded: if the call is exclusive and others are running; the replica is reserved for its
                retry.
        """
        call = _Call()
        if exclusive:
            self._slot.claim(call, busy=bool(self._running), served=True)
        try:
            while not self._slot.admits(itertools.chain(self._running, (call,))):
                await self._change()
            self._running.add(call)
            return await work()
        finally:
            call.closed = True
            self._running.discard(call)
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(None)

    async def _change(self) -> None:
        """Wait until a call has ended or a reservation has expired."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await asyncio.wait({waiting}, timeout=self._slot.reserved_seconds() or None)
        finally:
            self._waiting.discard(waiting)
