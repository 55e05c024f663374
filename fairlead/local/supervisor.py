"""Keeps the processes of a run alive until its main one has finished, then stops them in order.

Knows processes, exit codes and time; not what the processes do (plan.py) nor how it looks (view.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from fairlead.config import RunFolder
from fairlead.config.infrastructure import LocalSection
from fairlead.local import record, table
from fairlead.local.probes import Probe
from fairlead.local.process import Process, ProcessSpec, State, describe_exit
from fairlead.local.verdict import Outcome, judge, said

logger = logging.getLogger(__name__)

_PROBE_SECONDS = 0.1
_LIFE_SECONDS = 1.0
_LONGEST_LOOK_SECONDS = 5.0


class Supervisor:
    """All processes of one run on this machine."""

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        local: LocalSection,
        folder: RunFolder,
        environment: Mapping[str, str],
        stage: str = "",
        finished: Callable[[], bool] = lambda: True,
    ) -> None:
        """Nothing starts yet.

        Args:
            specs: what to run; names are unique.
            local: patience.
            folder: where logs and `processes.json` go.
            environment: variables of every process.
            stage: what the processes work on, for those who look on.
            finished: asked when the main process has exited with 0: a drain that a stranger asked for looks
                the same, but is no reason to stop.
        """
        self._local = local
        self._folder = folder
        self._finished = finished
        self._stage = stage
        self._started = time.time()
        self._mark = str(folder.root.absolute())
        marked = {**environment, table.MARK: self._mark}
        self.processes = [Process(spec, log=folder.log(spec.name), environment=marked) for spec in specs]
        self._by_name = {process.name: process for process in self.processes}
        self._outcome: Outcome | None = None
        self._ending = asyncio.Event()
        self._forced = asyncio.Event()

    @property
    def draining(self) -> bool:
        """Whether the run's end is decided."""
        return self._outcome is not None

    def stop(self, outcome: Outcome) -> None:
        """Decides the run's end, once. The second call ends every process at once instead of draining it."""
        if self._outcome is None:
            self._outcome = outcome
            self._ending.set()
        else:
            self._forced.set()

    async def run(self) -> Outcome:
        """Starts everything at once and returns when nothing is left of it."""
        stale = table.end_stale(self._folder.processes, mark=self._mark)
        if stale:
            logger.warning("ended what an earlier supervisor left behind: %s", ", ".join(stale))
        keepers = {process: asyncio.create_task(self._keep(process)) for process in self.processes}
        ending = asyncio.create_task(self._ending.wait())
        try:
            # A keeper ends by itself only when the run is over; if one fails, that is a bug and must show.
            await asyncio.wait([*keepers.values(), ending], return_when=asyncio.FIRST_COMPLETED)
            self._end(Outcome(1, "the supervisor failed"))
            await self._drain(keepers)
            await asyncio.gather(*keepers.values())
        finally:
            # Nothing is left to do here but after a bug or a cancellation.
            self._end(Outcome(1, "the supervisor was cancelled"))
            for process in self.processes:
                process.kill()
            await asyncio.gather(*keepers.values(), ending, return_exceptions=True)
            self._write_table()
        assert self._outcome is not None
        return self._outcome

    def _end(self, outcome: Outcome) -> None:
        if self._outcome is None:
            self.stop(outcome)

    async def _keep(self, process: Process) -> None:
        """The life of one process: start, readiness, end, and again."""
        while not self.draining:
            await process.start()
            self._write_table()
            if self.draining:
                process.terminate()
            readiness = asyncio.create_task(self._watch(process))
            try:
                code = await process.wait()
            finally:
                readiness.cancel()
                await asyncio.gather(readiness, return_exceptions=True)
            process.state = State.ENDED
            self._write_table()
            if self.draining:
                return
            verdict = judge(process, code, local=self._local, finished=self._finished)
            if isinstance(verdict, Outcome):
                self._end(verdict)
                return
            process.state = State.BACKOFF
            self._write_table()
            logger.warning(
                "%s died (%s)%s; starting it again in %.3g s",
                *(process.name, describe_exit(code), said(process, code), verdict),
            )
            if await self._ends_within(verdict):
                process.state = State.ENDED

    async def _ends_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            return False
        return True

    async def _watch(self, process: Process) -> None:
        """Waits until it is ready, then looks on whether it answers; returns when it was given up."""
        await self._watch_readiness(process)
        if process.ready_at is not None and process.spec.alive is not None:
            await self._watch_life(process, process.spec.alive)

    async def _watch_life(self, process: Process, alive: Probe) -> None:
        silent = 0.0
        while silent < self._local.hung_seconds:
            asked = time.monotonic()
            await asyncio.sleep(_LIFE_SECONDS)
            if await alive():
                silent = 0.0
            else:
                # This process may itself have stood still: only what was seen counts.
                silent += min(time.monotonic() - asked, _LONGEST_LOOK_SECONDS)
        logger.warning("%s has answered nothing for %.0f s and is killed", process.name, silent)
        process.kill()

    async def _watch_readiness(self, process: Process) -> None:
        probe = process.spec.probe
        if probe is None:
            if not self.draining:
                process.mark_ready()
                self._write_table()
            return
        deadline: float | None = None
        while not await probe():
            if deadline is None and all(self._is_ready(name) for name in process.spec.ready_after):
                deadline = time.monotonic() + self._local.ready_seconds
            if deadline is not None and time.monotonic() > deadline:
                self._give_up_on(process)
                return
            await asyncio.sleep(_PROBE_SECONDS)
        if not self.draining:
            process.mark_ready()
            self._write_table()
            logger.info("%s is ready after %.1f s", process.name, time.monotonic() - process.started_at)

    def _is_ready(self, name: str) -> bool:
        return name not in self._by_name or self._by_name[name].state is State.READY

    def _give_up_on(self, process: Process) -> None:
        message = (
            f"{process.name} was not ready within {self._local.ready_seconds:g} s"
            f"{said(process)}; its log: {process.log}"
        )
        if process.was_ready:
            # It was healthy once: a restart that hangs is one more failure.
            logger.warning("%s", message)
            process.kill()
        else:
            self._end(Outcome(1, message))

    async def _drain(self, keepers: Mapping[Process, asyncio.Task[None]]) -> None:
        """Rank by rank: SIGTERM, `drain_seconds` of patience, SIGKILL."""
        for rank in sorted({process.spec.drain_rank for process in keepers}):
            peers = {process: task for process, task in keepers.items() if process.spec.drain_rank == rank}
            for process in peers:
                process.terminate()
            gone: asyncio.Future[object] = asyncio.ensure_future(asyncio.wait(peers.values()))
            forced: asyncio.Future[object] = asyncio.ensure_future(self._forced.wait())
            await asyncio.wait(
                [gone, forced], timeout=self._local.drain_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            for process in peers:
                if process.pid is not None:
                    why = "is killed" if self._forced.is_set() else "did not end in time and is killed"
                    logger.warning("%s %s", process.name, why)
                    process.kill()
            forced.cancel()
            await asyncio.gather(gone, forced, return_exceptions=True)

    def _write_table(self) -> None:
        pids = {process.name: process.pid for process in self.processes}
        table.write(self._folder.processes, {name: pid for name, pid in pids.items() if pid is not None})
        record.write(
            self._folder.supervisor,
            self.processes,
            stage=self._stage,
            started=self._started,
            outcome=self._outcome,
        )
