"""Exclusive requests: run one request while no other runs, so that a crash is attributed to that request.

`ExclusiveSlot` decides which waiting requests may start; the policy's engine uses it under its own lock.
`ExclusiveGate` applies it in an event loop, in front of the micro-batchers of the reward and reference
services, before a request is read. Requests wait in the order of their arrival: none is refused. Knows
nothing about messages or models.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

_SETTLE_SECONDS = 0.1
"""Pause before an exclusive request starts: replies to earlier requests, and the notice that it starts, must
leave first, because the request may kill the replica."""


class Startable(Protocol):
    """A request as `ExclusiveSlot` sees it."""

    closed: bool
    """Finished, failed or cancelled."""

    @property
    def exclusive(self) -> bool:
        """Whether nothing else may run at the same time."""
        ...

    @property
    def on_start(self) -> Callable[[], None] | None:
        """Called shortly before an exclusive request starts: from then on, a crash is its fault."""
        ...


_Request = TypeVar("_Request", bound=Startable)
_T = TypeVar("_T")


class ExclusiveSlot(Generic[_Request]):
    """Holds at most one exclusive request, and decides which requests may start. Not thread-safe."""

    def __init__(self) -> None:
        self._holder: _Request | None = None
        self._settled_at = 0.0

    def startable(self, waiting: Iterable[_Request], running: Collection[_Request]) -> list[_Request]:
        """Return the requests that may start now, in order.

        Those before the first exclusive request may. An exclusive one may when nothing else runs, after a
        short pause; while it waits for that, those after it wait as well.

        Args:
            waiting: requests that could start otherwise, in the order of their arrival.
            running: requests that have started and not ended.
        """
        if self._holder is not None and self._holder.closed:
            self._holder = None
        if self._holder is None:
            free = []
            for request in waiting:
                if not request.exclusive:
                    free.append(request)
                    continue
                if not free and not running:
                    self._hold(request)
                break
            if self._holder is None:
                return free
        return [] if self.settle_seconds() else [self._holder]

    def settle_seconds(self) -> float:
        """Return for how long the exclusive request still waits before it starts; 0 if it need not."""
        return max(0.0, self._settled_at - time.monotonic())

    def _hold(self, request: _Request) -> None:
        self._holder = request
        self._settled_at = time.monotonic() + _SETTLE_SECONDS
        if request.on_start is not None:
            request.on_start()


@dataclass(slots=True, eq=False)
class _Call:
    """One call that waits at the gate or runs."""

    exclusive: bool
    on_start: Callable[[], None] | None
    started: asyncio.Future[None]
    closed: bool = False


class ExclusiveGate:
    """Runs calls concurrently, and an exclusive call only while no other runs. Belongs to one event loop."""

    def __init__(self) -> None:
        self._slot = ExclusiveSlot[_Call]()
        self._waiting: dict[_Call, None] = {}
        self._running: set[_Call] = set()

    async def run(
        self,
        work: Callable[[], Awaitable[_T]],
        *,
        exclusive: bool = False,
        on_start: Callable[[], None] | None = None,
    ) -> _T:
        """Run the work of a call once it may start, and return its result.

        Args:
            work: the call.
            exclusive: whether no other call may run at the same time.
            on_start: called shortly before an exclusive call starts.
        """
        call = _Call(exclusive, on_start, asyncio.get_running_loop().create_future())
        self._waiting[call] = None
        try:
            self._start()
            await call.started
            return await work()
        finally:
            call.closed = True
            self._waiting.pop(call, None)
            self._running.discard(call)
            self._start()

    def _start(self) -> None:
        for call in self._slot.startable(self._waiting, self._running):
            if self._waiting.pop(call, call) is None:
                self._running.add(call)
                call.started.set_result(None)
        settle = self._slot.settle_seconds()
        if settle:
            asyncio.get_running_loop().call_later(settle, self._start)
