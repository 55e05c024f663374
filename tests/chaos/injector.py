"""Strikes: signals to processes, links that misbehave, a queue that forgets. Says what was done and when."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import redis.asyncio

from fairlead.local.supervisor import Supervisor
from tests.chaos.faults import LATENCY_SECONDS, Fault
from tests.chaos.proxy import Proxy

_NARROW_BYTES_PER_SECOND = 4_096


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that has struck."""

    fault: Fault
    """Which."""
    time: float
    """Unix time."""
    update: int
    """Updates done then."""
    killed: tuple[str, ...]
    """Processes that were killed by it."""


class Injector:
    """Breaks one run."""

    def __init__(
        self,
        supervisor: Supervisor,
        proxies: Mapping[str, Proxy],
        *,
        redis_url: str,
        update: Callable[[], int],
    ) -> None:
        self._processes = {process.name: process for process in supervisor.processes}
        self._proxies, self._redis_url, self._update = proxies, redis_url, update
        self._mending: set[asyncio.Task[None]] = set()
        self.strikes: list[Strike] = []

    async def strike(self, fault: Fault) -> None:
        """Does it; what lasts goes on in the background."""
        before, update, killed = time.time(), self._update(), tuple[str, ...]()
        if fault.kind == "kill":
            killed = (fault.target,) if self._signal(fault.target, signal.SIGKILL) else ()
        elif fault.kind == "kill_all":
            killed = tuple(name for name in self._processes if self._signal(name, signal.SIGKILL))
        elif fault.kind == "pause":
            pid = self._signal(fault.target, signal.SIGSTOP)
            self._later(fault.seconds, lambda: _continue(pid))
        elif fault.kind == "hang":
            self._signal(fault.target, signal.SIGSTOP)
        elif fault.kind == "forget":
            await self._forget()
        else:
            await self._disturb(fault)
        self.strikes.append(Strike(fault, before, update, killed))

    async def mend(self) -> None:
        """Waits until nothing lasts any more."""
        while self._mending:
            await asyncio.wait(set(self._mending))

    def _signal(self, name: str, number: signal.Signals) -> int | None:
        """Sends a signal; the pid, None if the process does not live now."""
        pid = self._processes[name].pid
        if pid is None:
            return None
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # it has died, and its supervisor does not know yet
            return None
        return pid

    async def _forget(self) -> None:
        async with redis.asyncio.Redis.from_url(self._redis_url) as client:
            with contextlib.suppress(redis.RedisError, OSError):  # it is away itself
                await client.flushall()

    async def _disturb(self, fault: Fault) -> None:
        proxy = self._proxies[fault.target]
        if fault.kind == "cut":
            await proxy.cut()
        elif fault.kind == "stall":
            proxy.stall()
        elif fault.kind == "latency":
            proxy.latency_seconds = LATENCY_SECONDS
        else:
            proxy.bytes_per_second = _NARROW_BYTES_PER_SECOND

        self._later(fault.seconds, proxy.heal)

    def _later(self, seconds: float, mend: Callable[[], object]) -> None:
        async def work() -> None:
            await asyncio.sleep(seconds)
            found = mend()
            if asyncio.iscoroutine(found):
                await found

        task = asyncio.ensure_future(work())
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)


def _continue(pid: int | None) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
