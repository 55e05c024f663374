"""The stall watchdog of a process: what it waits for, since when, for which task; and the end of
one that hangs.

One a process, as there is one log: whoever waits says so with `waiting(...)`, in threads and in coroutines
alike. A thread of its own looks on, so that a stuck event loop or forward pass is noticed. No torch here.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fairlead.errors import Stalled, exit_code

logger = logging.getLogger(__name__)

KINDS = ("policy", "reward", "reference", "queue", "tasks", "weights", "model", "loop", "phase")
"""What a process can wait for: a service; the queue's answer; work from it; the first weights; a forward
pass; the next turn of its event loop; the end of what the trainer does."""

_LOOK_SECONDS = 1.0
_BEAT_SECONDS = 0.5
_SUSPENDED_SECONDS = 5.0
"""A look that comes so much too late means that the whole process stood still, not what it waits for."""


@dataclass(slots=True, eq=False)
class Wait:
    """Something that the process waits for now."""

    what: str
    """One of KINDS."""
    detail: str
    """What exactly, for people; may be empty."""
    task: int | None
    """The prompt task that it is for, if it is for one."""
    limited: bool
    """Whether it may last `limit_seconds` at most."""
    since: float
    """Unix time at which it began."""
    begun: float
    """The same on the monotonic clock, later by what the process itself stood still."""

    def again(self) -> None:
        """It came to something, and the wait begins anew."""
        self.since, self.begun = time.time(), time.monotonic()

    def __str__(self) -> str:
        told = self.detail or f"the {self.what}"
        return told if self.task is None else f"{told} for task {self.task}"


def _end(reason: str) -> None:
    """Ends the process at once: what hangs would hold up every orderly way out."""
    logger.critical("%s", reason)
    sys.stderr.write(f"Stalled: {reason}\n")
    sys.stderr.flush()
    os._exit(exit_code(Stalled(reason)))


class Watchdog:
    """Knows every wait of a process."""

    def __init__(self, *, on_stall: Callable[[str], None] = _end) -> None:
        """`on_stall` gets the reason, in the watchdog's thread."""
        self._on_stall = on_stall
        self._waits: dict[int, Wait] = {}
        self._numbers = itertools.count()

    @contextmanager
    def waiting(
        self, what: str, detail: str = "", *, task: int | None = None, limited: bool = True
    ) -> Iterator[Wait]:
        """Names what is waited for, for the length of the block."""
        wait = Wait(what, detail, task, limited, time.time(), time.monotonic())
        number = next(self._numbers)
        self._waits[number] = wait
        try:
            yield wait
        finally:
            del self._waits[number]

    def waits(self) -> list[Wait]:
        """Every wait, the longest first."""
        return sorted(self._waits.values(), key=lambda wait: wait.begun)

    def longest(self) -> dict[str, Wait]:
        """The longest wait of each kind, the longest first."""
        found: dict[str, Wait] = {}
        for wait in self.waits():
            found.setdefault(wait.what, wait)
        return found

    def seconds(self, what: str) -> float:
        """Age of the longest wait of a kind; 0 if there is none."""
        found = self.longest().get(what)
        return max(0.0, time.time() - found.since) if found else 0.0

    def to_json(self) -> str:
        """What `/waiting` serves: the longest wait of each kind, the longest first."""
        now = time.time()
        found = [
            {
                "what": wait.what,
                "detail": wait.detail,
                "task": wait.task,
                "since": wait.since,
                "seconds": max(0.0, now - wait.since),
            }
            for wait in self.longest().values()
        ]
        return json.dumps(found)

    def start(self, *, limit_seconds: float) -> Callable[[], None]:
        """Looks on in a thread; returns a function that stops that.

        Args:
            limit_seconds: what lasts longer ends the process with `Stalled`'s exit code; 0: nothing does.
        """
        stop = threading.Event()

        def look_on() -> None:
            looked = time.monotonic()
            while not stop.wait(_LOOK_SECONDS):
                now = time.monotonic()
                late, looked = now - looked - _LOOK_SECONDS, now
                if late > _SUSPENDED_SECONDS:
                    for wait in self.waits():
                        wait.begun += late
                reason = self._stalled(now, limit_seconds)
                if reason:
                    self._on_stall(reason)

        threading.Thread(target=look_on, name="watchdog", daemon=True).start()
        return stop.set

    async def beat(self) -> None:
        """Shows until it is cancelled that the event loop turns."""
        with self.waiting("loop", "the next turn of the event loop") as turn:
            while True:
                await asyncio.sleep(_BEAT_SECONDS)
                turn.again()

    def _stalled(self, now: float, limit_seconds: float) -> str:
        for wait in self.waits():
            if wait.limited and limit_seconds and now - wait.begun > limit_seconds:
                return f"waited {now - wait.begun:.0f} s for {wait}, at most {limit_seconds:g} s are allowed"
        return ""


PROCESS = Watchdog()
"""That of this process."""
