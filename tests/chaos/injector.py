"""Injects faults: signals to processes, faults of links, a queue that loses everything. Records when."""

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
from tests.integration.rank_faults import ranks_of

RANK = "trainer-rank-"
"""Begins the name of a rank of the trainer as a target; its number follows."""
_NARROW_BYTES_PER_SECOND = 4_096


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """A fault that was injected."""

    fault: Fault
    """The fault."""
    time: float
    """Unix time."""
    update: int
    """Updates done by then."""
    killed: tuple[str, ...]
    """Processes that it killed."""


class Injector:
    """Injects faults into one run."""

    def __init__(
        self,
        supervisor: Supervisor,
        proxies: Mapping[str, Proxy],
        *,
        redis_url: str,
        update: Callable[[], int],
    ) -> None:
        self._processes = {process.name: process for process in supervisor.processes}
        self._proxies = proxies
        self._redis_url = redis_url
        self._update = update
        self._healing: set[asyncio.Task[None]] = set()
        self.injected: list[InjectedFault] = []

    async def inject(self, fault: Fault) -> None:
        """Inject a fault; one with a duration ends in the background."""
        before = time.time()
        update = self._update()
        killed: tuple[str, ...] = ()
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
        self.injected.append(InjectedFault(fault, before, update, killed))

    async def wait_healed(self) -> None:
        """Wait until every fault with a duration has ended."""
        while self._healing:
            await asyncio.wait(set(self._healing))

    def _signal(self, name: str, number: signal.Signals) -> int | None:
        """Send a signal to a process; return its PID, None if it is not running now."""
        pid = self._pid(name)
        if pid is None:
            return None
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # it has died, and the supervisor has not noticed yet
            return None
        return pid

    def _pid(self, name: str) -> int | None:
        """Return the PID of a process of the supervisor, or of a rank, a child of the trainer."""
        if name in self._processes:
            return self._processes[name].pid
        rank = ranks_of(self._processes["trainer"].pid).get(int(name.removeprefix(RANK)))
        return rank.pid if rank else None

    async def _forget(self) -> None:
        async with redis.asyncio.Redis.from_url(self._redis_url) as client:
            with contextlib.suppress(redis.RedisError, OSError):  # it may be down
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

    def _later(self, seconds: float, wait_healed: Callable[[], object]) -> None:
        async def work() -> None:
            await asyncio.sleep(seconds)
            found = wait_healed()
            if asyncio.iscoroutine(found):
                await found

        task = asyncio.ensure_future(work())
        self._healing.add(task)
        task.add_done_callback(self._healing.discard)


def _continue(pid: int | None) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
