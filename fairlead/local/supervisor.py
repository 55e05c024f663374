"""Keeps the processes of a run alive until its main process has finished, then stops them in order.

It knows processes, exit codes and time; plan.py knows what the processes do, view.py how they are shown.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from fairlead.config import RunFolder
from fairlead.config.infrastructure import LocalSection
from fairlead.local.addresses import SUPERVISOR
from fairlead.local.probes import Probe
from fairlead.local.process import ChildProcess, ProcessSpec, State, describe_exit
from fairlead.local.restart_policy import RunOutcome, after_exit, last_line_note
from fairlead.local.run_files import MARK, end_stale, write_pids, write_record, write_targets
from fairlead.local.standby import Standby
from fairlead.metrics import SupervisorMetrics

logger = logging.getLogger(__name__)

_READINESS_PROBE_SECONDS = 0.1
_LIVENESS_PROBE_SECONDS = 1.0
_LONGEST_COUNTED_PROBE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Observed:
    """The metrics of a supervisor, and where they are."""

    metrics: SupervisorMetrics
    """Restarts, states and the outcome."""
    address: str = ""
    """`host:port` at which they are served; empty if they are not."""
    run: str = ""
    """Name of the run, the label of its targets."""
    scheme: str = "http"
    """`https` if the processes serve their metrics over TLS."""


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
        standby: Standby | None = None,
        observed: Observed | None = None,
    ) -> None:
        """Prepare the processes; nothing starts yet.

        Args:
            specs: the processes to run; their names are unique.
            local: timeouts, delays and limits of restarts.
            folder: folder of the run, for logs, `processes.json` and `supervisor.json`.
            environment: variables of every process.
            stage: name of the stage, for `supervisor.json`.
            finished: whether the run's work is done; called when the main process has exited with 0, which
                also happens when someone else sent it SIGTERM: then it is restarted.
            standby: processes that may run those that load models.
            observed: the metrics of the supervisor, and where they are served.
        """
        self._observed = observed or Observed(SupervisorMetrics(registry=CollectorRegistry()))
        self._local = local
        self._folder = folder
        self._finished = finished
        self._stage = stage
        self._started = time.time()
        self._mark = str(folder.root.absolute())
        marked = {**environment, MARK: self._mark}
        self.processes = [
            ChildProcess(spec, log=folder.log(spec.name), environment=marked, standby=standby)
            for spec in specs
        ]
        self._by_name = {process.name: process for process in self.processes}
        self._outcome: RunOutcome | None = None
        self._ending = asyncio.Event()
        self._forced = asyncio.Event()

    @property
    def draining(self) -> bool:
        """Whether the outcome of the run is decided and its processes are being stopped."""
        return self._outcome is not None

    def stop(self, outcome: RunOutcome) -> None:
        """End the run with an outcome. A second call kills every process instead of draining it."""
        if self._outcome is None:
            self._outcome = outcome
            self._observed.metrics.set_outcome(outcome.code)
            self._ending.set()
        else:
            self._forced.set()

    async def run(self) -> RunOutcome:
        """Start every process at once; return the outcome when all of them have ended."""
        stale = end_stale(self._folder.processes, mark=self._mark)
        if stale:
            logger.warning("killed processes that an earlier supervisor left running: %s", ", ".join(stale))
        tasks = {process: asyncio.create_task(self._keep_alive(process)) for process in self.processes}
        ending = asyncio.create_task(self._ending.wait())
        try:
            # A task ends only when the run is over. If one fails, that is a bug, and its error is raised.
            await asyncio.wait([*tasks.values(), ending], return_when=asyncio.FIRST_COMPLETED)
            self._end(RunOutcome(1, "the supervisor failed"))
            await self._drain(tasks)
            await asyncio.gather(*tasks.values())
        finally:
            # Has an effect only after a bug or a cancellation.
            self._end(RunOutcome(1, "the supervisor was cancelled"))
            for process in self.processes:
                process.kill()
            await asyncio.gather(*tasks.values(), ending, return_exceptions=True)
            self._write_files()
        assert self._outcome is not None
        return self._outcome

    def _end(self, outcome: RunOutcome) -> None:
        if self._outcome is None:
            self.stop(outcome)

    async def linger(self, seconds: float) -> None:
        """Wait after the end, so that the outcome is scraped, then remove the targets; `stop` ends it early.

        Args:
            seconds: how long; 0 for not at all.
        """
        try:
            if seconds and self._observed.address:
                logger.info("metrics are served for another %g s (observe.linger_seconds)", seconds)
                async with asyncio.timeout(seconds):
                    await self._forced.wait()
        except TimeoutError:
            pass
        finally:
            write_targets(self._folder.targets, {}, run=self._observed.run)

    async def _keep_alive(self, process: ChildProcess) -> None:
        """Start a process, wait for its end, and repeat until the run ends."""
        while not self.draining:
            await process.start()
            self._write_files()
            if self.draining:
                process.terminate()
            readiness = asyncio.create_task(self._watch(process))
            try:
                code = await process.wait()
            finally:
                readiness.cancel()
                await asyncio.gather(readiness, return_exceptions=True)
            process.state = State.ENDED
            self._write_files()
            if self.draining:
                return
            decision = after_exit(process, code, local=self._local, finished=self._finished)
            if isinstance(decision, RunOutcome):
                self._end(decision)
                return
            reason = process.killed_for or ("exit" if code >= 0 else "signal")
            self._observed.metrics.restarts.labels(process=process.name, reason=reason).inc()
            process.state = State.BACKOFF
            self._write_files()
            logger.warning(
                "%s died (%s%s); restarting it in %.3g s",
                process.name,
                describe_exit(code),
                last_line_note(process, code),
                decision,
            )
            if await self._ends_within(decision):
                process.state = State.ENDED

    async def _ends_within(self, seconds: float) -> bool:
        """Wait for the end of the run for at most `seconds`; return whether it came."""
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            return False
        return True

    async def _watch(self, process: ChildProcess) -> None:
        """Wait until a process is ready, then check that it is alive; return once it was given up."""
        await self._watch_readiness(process)
        if process.ready_at is not None and process.spec.alive is not None:
            await self._watch_liveness(process, process.spec.alive)

    async def _watch_liveness(self, process: ChildProcess, alive: Probe) -> None:
        silent_seconds = 0.0
        while silent_seconds < self._local.hung_seconds:
            began = time.monotonic()
            await asyncio.sleep(_LIVENESS_PROBE_SECONDS)
            if await alive():
                silent_seconds = 0.0
            else:
                # The supervisor itself may have been suspended; such a time counts only in part.
                silent_seconds += min(time.monotonic() - began, _LONGEST_COUNTED_PROBE_SECONDS)
        logger.warning("%s has not answered for %.0f s; killing it", process.name, silent_seconds)
        process.killed_for = "hung"
        process.kill()

    async def _watch_readiness(self, process: ChildProcess) -> None:
        probe = process.spec.probe
        if probe is None:
            if not self.draining:
                process.mark_ready()
                self._write_files()
            return
        deadline: float | None = None
        while not await probe():
            if deadline is None and all(self._is_ready(name) for name in process.spec.ready_after):
                deadline = time.monotonic() + self._local.ready_seconds
            if deadline is not None and time.monotonic() > deadline:
                self._give_up_on(process)
                return
            await asyncio.sleep(_READINESS_PROBE_SECONDS)
        if not self.draining:
            process.mark_ready()
            self._write_files()
            logger.info("%s is ready after %.1f s", process.name, time.monotonic() - process.started_at)

    def _is_ready(self, name: str) -> bool:
        return name not in self._by_name or self._by_name[name].state is State.READY

    def _give_up_on(self, process: ChildProcess) -> None:
        message = (
            f"{process.name} was not ready within {self._local.ready_seconds:g} s"
            f"{last_line_note(process)}; its log: {process.log}"
        )
        if process.was_ready:
            # It was ready before, so a start that hangs counts as one more failure.
            logger.warning("%s", message)
            process.killed_for = "not_ready"
            process.kill()
        else:
            self._end(RunOutcome(1, message))

    async def _drain(self, tasks: Mapping[ChildProcess, asyncio.Task[None]]) -> None:
        """Stop one rank after the other: SIGTERM, and SIGKILL after `drain_seconds`."""
        for rank in sorted({process.spec.drain_rank for process in tasks}):
            stopping = {process: task for process, task in tasks.items() if process.spec.drain_rank == rank}
            for process in stopping:
                process.terminate()
            ended: asyncio.Future[object] = asyncio.ensure_future(asyncio.wait(stopping.values()))
            forced: asyncio.Future[object] = asyncio.ensure_future(self._forced.wait())
            await asyncio.wait(
                [ended, forced], timeout=self._local.drain_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            for process in stopping:
                if process.pid is not None:
                    message = "killing %s" if self._forced.is_set() else "%s did not end in time; killing it"
                    logger.warning(message, process.name)
                    process.kill()
            forced.cancel()
            await asyncio.gather(ended, forced, return_exceptions=True)

    def _write_files(self) -> None:
        pids = {process.name: process.pid for process in self.processes}
        write_pids(self._folder.processes, {name: pid for name, pid in pids.items() if pid is not None})
        write_record(
            self._folder.supervisor,
            self.processes,
            stage=self._stage,
            started=self._started,
            outcome=self._outcome,
            metrics=self._observed.address,
        )
        for process in self.processes:
            self._observed.metrics.set_state(process.name, process.state.value)
        self._write_targets()

    def _write_targets(self) -> None:
        """Write where the metrics of the processes that are alive are served."""
        targets = {
            process.name: process.spec.metrics for process in self.processes if process.pid is not None
        }
        write_targets(
            self._folder.targets,
            targets | {SUPERVISOR: self._observed.address},
            run=self._observed.run,
            scheme=self._observed.scheme,
        )
