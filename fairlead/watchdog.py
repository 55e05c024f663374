"""The stall watchdog of a process: records what the process waits for, and ends a process that hangs.

There is one watchdog for each process. Code that waits calls `waiting(...)`, in threads and in coroutines
alike. The watchdog checks in a separate thread, so that a stuck event loop or forward pass is noticed. Does
not import torch.
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
"""Kinds of waits: for a service; for the queue's answer; for a task; for the first weights; for a forward
pass (model); for the next turn of the event loop; for the end of a phase of the trainer."""

_CHECK_SECONDS = 1.0
_BEAT_SECONDS = 0.5
_SUSPENDED_SECONDS = 5.0
"""A check that is this late means that the whole process was suspended, which does not count as waiting."""


@dataclass(slots=True, eq=False)
class Wait:
    """A wait in progress."""

    what: str
    """One of KINDS."""
    detail: str
    """Description; may be empty."""
    task: int | None
    """Prompt task of the wait; None if there is none."""
    limited: bool
    """Whether the process ends if the wait lasts longer than `limit_seconds`."""
    since: float
    """Unix time of its begin."""
    begun: float
    """Begin on the monotonic clock, plus the time for which the process was suspended."""

    def restart(self) -> None:
        """Begin again, after progress."""
        self.since, self.begun = time.time(), time.monotonic()

    def extend(self) -> None:
        """Begin the limit again: what is waited for has not come, but the thread that waits still works."""
        self.begun = time.monotonic()

    def __str__(self) -> str:
        what = self.detail or f"the {self.what}"
        return what if self.task is None else f"{what} for task {self.task}"


def _end(reason: str) -> None:
    """End the process at once: an orderly shutdown would wait for what hangs."""
    logger.critical("%s", reason)
    sys.stderr.write(f"Stalled: {reason}\n")
    sys.stderr.flush()
    os._exit(exit_code(Stalled(reason)))


class Watchdog:
    """Records the waits of a process."""

    def __init__(self, *, on_stall: Callable[[str], None] = _end) -> None:
        """Call `on_stall` with the reason, in the watchdog's thread, when a wait lasts too long."""
        self._on_stall = on_stall
        self._waits: dict[int, Wait] = {}
        self._numbers = itertools.count()

    @contextmanager
    def waiting(
        self, what: str, detail: str = "", *, task: int | None = None, limited: bool = True
    ) -> Iterator[Wait]:
        """Record a wait for the duration of the block.

        Args:
            what: one of KINDS.
            detail: description for the log.
            task: prompt task of the wait.
            limited: whether the wait may end the process.
        """
        wait = Wait(what, detail, task, limited, time.time(), time.monotonic())
        number = next(self._numbers)
        self._waits[number] = wait
        try:
            yield wait
        finally:
            del self._waits[number]

    def waits(self) -> list[Wait]:
        """Return the waits in progress, the longest first."""
        return sorted(self._waits.values(), key=lambda wait: wait.begun)

    def longest(self) -> dict[str, Wait]:
        """Return the longest wait of each kind, the longest first."""
        found: dict[str, Wait] = {}
        for wait in self.waits():
            found.setdefault(wait.what, wait)
        return found

    def seconds(self, what: str) -> float:
        """Return the age of the longest wait of a kind in seconds; 0 if there is none."""
        found = self.longest().get(what)
        return max(0.0, time.time() - found.since) if found else 0.0

    def to_json(self) -> str:
        """Return the response of `/waiting`: the longest wait of each kind, the longest first."""
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
        """Start checking in a thread; return a function that stops it.

        Args:
            limit_seconds: a longer wait ends the process with the exit code of `Stalled`; 0 for no limit.
        """
        stop = threading.Event()

        def check() -> None:
            checked = time.monotonic()
            while not stop.wait(_CHECK_SECONDS):
                now = time.monotonic()
                late = now - checked - _CHECK_SECONDS
                checked = now
                if late > _SUSPENDED_SECONDS:
                    for wait in self.waits():
                        wait.begun += late
                reason = self._stalled(now, limit_seconds)
                if reason:
                    self._on_stall(reason)

        threading.Thread(target=check, name="watchdog", daemon=True).start()
        return stop.set

    async def beat(self) -> None:
        """Record the turns of the event loop, until cancelled."""
        with self.waiting("loop", "the next turn of the event loop") as turn:
            while True:
                await asyncio.sleep(_BEAT_SECONDS)
                turn.restart()

    def _stalled(self, now: float, limit_seconds: float) -> str:
        for wait in self.waits():
            if wait.limited and limit_seconds and now - wait.begun > limit_seconds:
                return f"waited {now - wait.begun:.0f} s for {wait}; the limit is {limit_seconds:g} s"
        return ""


PROCESS = Watchdog()
"""The watchdog of this process."""
