"""The loop of a rollout worker: claim tasks, answer them, return the results; renew the leases meanwhile.

Sits between the queue and the model services; it knows both only by their interfaces. `task_failure` decides
what happens to a task that failed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from fairlead import log, tracing, watchdog
from fairlead.backoff import Backoff, retry
from fairlead.config.serving import RolloutWorkerSection
from fairlead.errors import FairleadError, QueueUnavailable
from fairlead.metrics import WorkerMetrics
from fairlead.transports.rollouts.base import Claim, WorkerQueue
from fairlead.types import DeadLetter, PromptTask, Rollout, TaskResult
from services.rollout_worker.task_failure import FailureAction, TaskFailure, classify

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_CLAIM_BLOCK_SECONDS = 0.5
_GATHER_SECONDS = 0.005
"""A nearly full worker waits this long before it claims: claiming eight tasks costs as much as claiming
one."""
_OUTAGE = Backoff(first_seconds=0.2, longest_seconds=5.0)
_QUEUE_RETRY = Backoff(first_seconds=0.1, longest_seconds=2.0)
_RELEASE_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class _ClaimedTask:
    """A task that this worker has claimed."""

    claim: Claim
    work: asyncio.Task[None] | None = None
    has_result: bool = False
    """Its result is being returned. The first result counts, so a lost lease does not stop that."""
    released: bool = False
    """It is released to any worker, maybe to this one."""


@dataclass(slots=True)
class _ServiceOutage:
    """Delays claims while services are unavailable; the worker then claims one task at a time."""

    failures: int = 0
    until: float = 0.0

    def failed(self) -> None:
        """Delay the next claim. Tasks that fail during the delay count as one failure."""
        now = time.monotonic()
        if now < self.until:
            return
        self.failures += 1
        self.until = now + _OUTAGE.seconds(self.failures)

    def ended(self) -> None:
        """Note that the services have answered."""
        self.failures = 0
        self.until = 0.0

    @property
    def delay_seconds(self) -> float:
        """Time until the next claim."""
        return max(0.0, self.until - time.monotonic())


@dataclass(slots=True)
class RolloutWorker:
    """The work of one worker process."""

    queue: WorkerQueue
    """Where tasks are claimed and rollouts are returned."""
    answer: Callable[[PromptTask, bool], Awaitable[tuple[Rollout, ...]]]
    """Returns the rollouts of a task, such as `ModelServices.answer`; True asks for exclusive calls."""
    section: RolloutWorkerSection
    """Number of answers in parallel, and the grace period of a drain."""
    lease_seconds: float
    """Length of a lease; leases are renewed three times in that time."""
    metrics: WorkerMetrics
    """Metrics of this process."""
    num_samples: int = 1
    """Answers per task."""
    _queue_answers: bool = True
    _claimed: dict[str, _ClaimedTask] = field(default_factory=dict)
    _outage: _ServiceOutage = field(default_factory=_ServiceOutage)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a task has been returned, or when the worker is to stop."""

    @property
    def max_tasks(self) -> int:
        """Number of tasks that may be in progress at the same time."""
        return max(1, self.section.max_in_flight // self.num_samples)

    @property
    def ready(self) -> bool:
        """Whether the queue answers and the last calls to the services succeeded."""
        return self._queue_answers and self._outage.failures == 0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then drain: claim nothing, and finish or release the tasks in progress.

        Raises:
            FairleadError: an error that a retry does not solve, such as SchemaTooNew or QueueMisconfigured.
        """
        leases = asyncio.create_task(self._renew_leases(), name="leases")
        claims = asyncio.create_task(self._claim_until(stop), name="claims")
        stopped = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({leases, claims, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stop.set()
            self._changed.set()
            await self._drain(claims)
        finally:
            for task in (claims, stopped, leases):
                await _cancel(task)
            await self._release_all()
        for task in (claims, leases):
            if not task.cancelled():
                task.result()

    async def _claim_until(self, stop: asyncio.Event) -> None:
        with watchdog.PROCESS.waiting("tasks", "a task to claim", limited=False) as idle:
            while not stop.is_set():
                count = await self._claimable(stop)
                if count == 0:
                    idle.restart()
                    continue
                claim = partial(self.queue.claim, count=count, block_seconds=_CLAIM_BLOCK_SECONDS)
                claims = await self._call_queue("claim", claim)
                if stop.is_set():
                    await self._call_queue("release", partial(self.queue.release, claims))
                    return
                for claimed in claims:
                    self._start(claimed)
                    idle.restart()

    async def _claimable(self, stop: asyncio.Event) -> int:
        """Return how many tasks may be claimed; 0 after waiting for a change."""
        limit = 1 if self._outage.failures else self.max_tasks
        delay = self._outage.delay_seconds
        if len(self._claimed) < limit and delay == 0:
            if limit - len(self._claimed) < limit // 8:
                await asyncio.sleep(_GATHER_SECONDS)
            return limit - len(self._claimed)
        self._changed.clear()
        if not stop.is_set():
            await _wait(self._changed, delay or None)
        return 0

    def _start(self, claim: Claim) -> None:
        held = self._claimed.get(claim.entry_id)
        if held is not None and not held.released:
            # This worker's own lease expired and it claimed the task again: the work continues.
            held.claim = claim
            return
        held = self._claimed[claim.entry_id] = _ClaimedTask(claim)
        held.work = asyncio.create_task(self._traced_work(held), name=f"task-{claim.task.task_id}")
        held.work.add_done_callback(partial(self._ended, held))
        self.metrics.in_flight.set(len(self._claimed))

    def _ended(self, held: _ClaimedTask, _: asyncio.Task[None]) -> None:
        if self._claimed.get(held.claim.entry_id) is held:
            del self._claimed[held.claim.entry_id]
        self.metrics.in_flight.set(len(self._claimed))
        self._changed.set()

    async def _traced_work(self, held: _ClaimedTask) -> None:
        claim = held.claim
        task, sending = claim.task.task_id, claim.sending
        attributes = {
            "fairlead.task": task,
            "fairlead.delivery": claim.deliveries,
            "fairlead.failures": claim.failures,
        }
        with (
            log.bound(task=task),
            tracing.part_of(tracing.task_context(task, (sending.incarnation, sending.number))),
            tracing.span("claim", attributes=attributes),
        ):
            await self._work(held)

    async def _work(self, held: _ClaimedTask) -> None:
        try:
            result: tuple[Rollout, ...] | TaskFailure = await self.answer(
                held.claim.task, held.claim.failures > 0
            )
        except Exception as error:
            result = classify(error)
            if result.letter.reason == "worker_error":
                logger.exception("task %d failed because of an error in this worker", held.claim.task.task_id)
        held.has_result = True
        if not isinstance(result, TaskFailure):
            self._outage.ended()
            await self._finish(held, result, "finished")
        elif result.action is FailureAction.DEAD_LETTER:
            await self._finish(held, result.letter, "dead_letter")
        elif result.action is FailureAction.COUNT:
            await self._fail(held, result.letter)
        else:
            await self._release(held, result.letter)

    async def _finish(self, held: _ClaimedTask, result: TaskResult, name: str) -> None:
        if isinstance(result, DeadLetter):
            _log("dead-lettered", held, result, level=logging.WARNING)
        with tracing.span("finish", attributes={"fairlead.result": name}), self.metrics.stage("finish"):
            first = await self._call_queue("finish", partial(self.queue.finish, held.claim, result))
        self.metrics.finished.labels(result=name if first else "duplicate").inc()

    async def _fail(self, held: _ClaimedTask, letter: DeadLetter) -> None:
        _log("failed", held, letter, level=logging.WARNING)
        held.released = True
        dead = await self._call_queue("fail", partial(self.queue.fail, held.claim, letter))
        self.metrics.finished.labels(result="dead_letter" if dead else "failed").inc()

    async def _release(self, held: _ClaimedTask, letter: DeadLetter) -> None:
        first = self._outage.failures == 0
        self._outage.failed()
        held.released = True
        _log("released", held, letter, level=logging.WARNING if first else logging.DEBUG)
        await self._call_queue("release", partial(self.queue.release, [held.claim]))
        self.metrics.finished.labels(result="released").inc()

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self.lease_seconds / 3)
            claimed = dict(self._claimed)
            if not claimed:
                continue
            renew = partial(self.queue.renew, [held.claim for held in claimed.values()])
            for entry_id in await self._call_queue("renew", renew):
                held = claimed[entry_id]
                if not held.has_result and held.work is not None:
                    logger.info("task %d cancelled: its lease was lost", held.claim.task.task_id)
                    held.work.cancel()
                    self.metrics.finished.labels(result="lost").inc()

    async def _drain(self, claims: asyncio.Task[None]) -> None:
        """Wait for the tasks in progress, at most the grace period."""
        deadline = time.monotonic() + self.section.drain_seconds
        logger.info("draining: %d tasks in progress", len(self._claimed))
        await asyncio.wait({claims}, timeout=min(self.section.drain_seconds, _RELEASE_SECONDS))
        work = [held.work for held in self._claimed.values() if held.work is not None]
        if work:
            await asyncio.wait(work, timeout=max(0.0, deadline - time.monotonic()))

    async def _release_all(self) -> None:
        """Cancel the tasks in progress and release them; if the queue is unavailable their leases expire."""
        unfinished = list(self._claimed.values())
        for held in unfinished:
            if held.work is not None:
                await _cancel(held.work)
        cancelled = [held for held in unfinished if held.work is None or held.work.cancelled()]
        if not cancelled:
            return
        claims = [held.claim for held in cancelled]
        try:
            await asyncio.wait_for(self.queue.release(claims), _RELEASE_SECONDS)
            self.metrics.finished.labels(result="released").inc(len(claims))
        except (FairleadError, TimeoutError) as error:
            logger.warning(
                "could not release %d tasks; their leases will expire: %s", len(claims), error or "timed out"
            )

    async def _call_queue(self, what: str, call: Callable[[], Awaitable[_T]]) -> _T:
        """Return the queue's answer, retried while the queue is unavailable; results stay in memory."""

        def unavailable(error: FairleadError) -> None:
            self.metrics.queue_errors.labels(operation=what).inc()
            if self._queue_answers:
                self._queue_answers = False
                logger.warning("the queue does not answer (%s), retrying: %s", what, error)

        with watchdog.PROCESS.waiting("queue", f"the queue's answer to {what}"):
            answer = await retry(
                call, what="", on=QueueUnavailable, backoff=_QUEUE_RETRY, on_wait=unavailable
            )
        if not self._queue_answers:
            self._queue_answers = True
            logger.info("the queue answers again")
        return answer


def _log(what: str, held: _ClaimedTask, letter: DeadLetter, *, level: int) -> None:
    logger.log(level, "task %d %s: %s: %s", held.claim.task.task_id, what, letter.reason, letter.detail)


async def _wait(event: asyncio.Event, timeout_seconds: float | None) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_seconds)
    except TimeoutError:
        return


async def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for it; its error, if any, stays in it."""
    task.cancel()
    await asyncio.wait({task})
