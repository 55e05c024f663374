"""The loop of a rollout worker: claims what it has room for, answers it, hands it back; renews its leases.

Between the queue and the model services, and knows both only by their interfaces. What becomes of a task
that failed is for `verdict` to say.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from fairlead import metrics, watchdog
from fairlead.config.serving import RolloutWorkerSection
from fairlead.errors import FairleadError, QueueUnavailable
from fairlead.transports.rollouts.base import Claim, WorkerQueue
from fairlead.types import DeadLetter, PromptTask, Rollout
from services.rollout_worker.verdict import Judgement, Verdict, judge

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_CLAIM_BLOCK_SECONDS = 0.5
_GATHER_SECONDS = 0.005
"""A worker that is nearly full waits so long for more room: claiming eight costs what claiming one does."""
_FIRST_HOLD_SECONDS = 0.2
_LONGEST_HOLD_SECONDS = 5.0
_FIRST_QUEUE_RETRY_SECONDS = 0.1
_LONGEST_QUEUE_RETRY_SECONDS = 2.0
_FAREWELL_SECONDS = 2.0


class Answers(Protocol):
    """What answers a task; `peers.Peers` in a real worker."""

    async def answer(self, task: PromptTask, *, suspect: bool = False) -> Rollout:
        """The rollout of a task; a suspect may be what kills replicas."""
        ...


@dataclass(slots=True, eq=False)
class _InHand:
    """A claimed task."""

    claim: Claim
    work: asyncio.Task[None] | None = None
    answered: bool = False
    """Its result is being handed back: the first to finish counts, so a lost lease does not stop that."""
    given_back: bool = False
    """It goes to whoever claims it next, maybe to this worker again."""


@dataclass(slots=True)
class _Trouble:
    """Services that are away. While they are, one task at a time tries its luck, ever less often."""

    in_a_row: int = 0
    until: float = 0.0

    def happened(self) -> None:
        """Holds the next claim for a while that doubles, with jitter; many tasks failing at once are one."""
        now = time.monotonic()
        if now < self.until:
            return
        self.in_a_row += 1
        bound = min(_LONGEST_HOLD_SECONDS, _FIRST_HOLD_SECONDS * 2.0 ** min(self.in_a_row - 1, 10))
        self.until = now + random.uniform(bound / 2, bound)

    def over(self) -> None:
        """A service answered."""
        self.in_a_row, self.until = 0, 0.0

    @property
    def hold_seconds(self) -> float:
        """How long to wait before the next claim."""
        return max(0.0, self.until - time.monotonic())


@dataclass(slots=True)
class RolloutWorker:
    """The work of one worker process."""

    queue: WorkerQueue
    """Where tasks come from and rollouts go."""
    peers: Answers
    """Who answers."""
    section: RolloutWorkerSection
    """How many at the same time, how long a drain."""
    lease_seconds: float
    """Leases are renewed three times in that time."""
    counts: metrics.WorkerMetrics
    """Where to count."""
    _queue_answers: bool = True
    _in_hand: dict[str, _InHand] = field(default_factory=dict)
    _trouble: _Trouble = field(default_factory=_Trouble)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Something was handed back, or the worker is to stop."""

    @property
    def ready(self) -> bool:
        """The queue answers, and so did the services lately."""
        return self._queue_answers and self._trouble.in_a_row == 0

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then drains: nothing new, what is in hand is finished or given back.

        Raises:
            FairleadError: one that waiting does not mend, such as SchemaTooNew or QueueMisconfigured.
        """
        leases = asyncio.create_task(self._renew_always(), name="leases")
        claims = asyncio.create_task(self._claim_until(stop), name="claims")
        stopped = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({leases, claims, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stop.set()
            self._moved.set()
            await self._drain(claims)
        finally:
            for task in (claims, stopped, leases):
                await _end(task)
            await self._give_back_all()
        for task in (claims, leases):
            if not task.cancelled():
                task.result()

    async def _claim_until(self, stop: asyncio.Event) -> None:
        with watchdog.PROCESS.waiting("tasks", "a task to claim", limited=False) as idle:
            while not stop.is_set():
                wanted = await self._room(stop)
                if wanted == 0:
                    idle.again()
                    continue
                claim = partial(self.queue.claim, count=wanted, block_seconds=_CLAIM_BLOCK_SECONDS)
                claims = await self._ask("claim", claim)
                if stop.is_set():
                    await self._ask("release", partial(self.queue.release, claims))
                    return
                for taken in claims:
                    self._take(taken)
                    idle.again()

    async def _room(self, stop: asyncio.Event) -> int:
        """How many tasks may be claimed; 0 after waiting for a change."""
        limit = 1 if self._trouble.in_a_row else self.section.max_in_flight
        held = self._trouble.hold_seconds
        if len(self._in_hand) < limit and held == 0:
            if limit - len(self._in_hand) < limit // 8:
                await asyncio.sleep(_GATHER_SECONDS)
            return limit - len(self._in_hand)
        self._moved.clear()
        if not stop.is_set():
            await _wait(self._moved, held or None)
        return 0

    def _take(self, claim: Claim) -> None:
        held = self._in_hand.get(claim.entry_id)
        if held is not None and not held.given_back:
            # Our own lease ran out and we claimed it again: the work goes on under the new claim.
            held.claim = claim
            return
        held = self._in_hand[claim.entry_id] = _InHand(claim)
        held.work = asyncio.create_task(self._work(held), name=f"task-{claim.task.task_id}")
        held.work.add_done_callback(partial(self._put_down, held))
        self.counts.in_flight.set(len(self._in_hand))

    def _put_down(self, held: _InHand, _: asyncio.Task[None]) -> None:
        if self._in_hand.get(held.claim.entry_id) is held:
            del self._in_hand[held.claim.entry_id]
        self.counts.in_flight.set(len(self._in_hand))
        self._moved.set()

    async def _work(self, held: _InHand) -> None:
        try:
            result: Rollout | Judgement = await self.peers.answer(
                held.claim.task, suspect=held.claim.failures > 0
            )
        except Exception as error:
            result = judge(error)
            if result.letter.reason == "worker_error":
                logger.exception("task %d failed in this worker", held.claim.task.task_id)
        held.answered = True
        if isinstance(result, Rollout):
            self._trouble.over()
            await self._finish(held, result, "finished")
        elif result.verdict is Verdict.DEAD:
            await self._finish(held, result.letter, "dead_letter")
        elif result.verdict is Verdict.FAIL:
            await self._fail(held, result.letter)
        else:
            await self._release(held, result.letter)

    async def _finish(self, held: _InHand, result: Rollout | DeadLetter, name: str) -> None:
        if isinstance(result, DeadLetter):
            self._tell("is dead", held, result, level=logging.WARNING)
        with self.counts.stage_seconds.labels(stage="finish").time():
            first = await self._ask("finish", partial(self.queue.finish, held.claim, result))
        self.counts.finished.labels(result=name if first else "duplicate").inc()

    async def _fail(self, held: _InHand, letter: DeadLetter) -> None:
        self._tell("failed", held, letter, level=logging.WARNING)
        held.given_back = True
        dead = await self._ask("fail", partial(self.queue.fail, held.claim, letter))
        self.counts.finished.labels(result="dead_letter" if dead else "failed").inc()

    async def _release(self, held: _InHand, letter: DeadLetter) -> None:
        first = self._trouble.in_a_row == 0
        self._trouble.happened()
        held.given_back = True
        self._tell("goes back", held, letter, level=logging.WARNING if first else logging.DEBUG)
        await self._ask("release", partial(self.queue.release, [held.claim]))
        self.counts.finished.labels(result="released").inc()

    def _tell(self, what: str, held: _InHand, letter: DeadLetter, *, level: int) -> None:
        logger.log(level, "task %d %s: %s: %s", held.claim.task.task_id, what, letter.reason, letter.detail)

    async def _renew_always(self) -> None:
        while True:
            await asyncio.sleep(self.lease_seconds / 3)
            held = dict(self._in_hand)
            if not held:
                continue
            lost = await self._ask("renew", partial(self.queue.renew, [one.claim for one in held.values()]))
            for entry_id in lost:
                one = held[entry_id]
                if not one.answered and one.work is not None:
                    logger.info("task %d is in other hands: dropped", one.claim.task.task_id)
                    one.work.cancel()
                    self.counts.finished.labels(result="lost").inc()

    async def _drain(self, claims: asyncio.Task[None]) -> None:
        """Waits for what is in hand, at most the grace period."""
        deadline = time.monotonic() + self.section.drain_seconds
        logger.info("draining: %d tasks in hand", len(self._in_hand))
        await asyncio.wait({claims}, timeout=min(self.section.drain_seconds, _FAREWELL_SECONDS))
        work = [held.work for held in self._in_hand.values() if held.work is not None]
        if work:
            await asyncio.wait(work, timeout=max(0.0, deadline - time.monotonic()))

    async def _give_back_all(self) -> None:
        """Ends what is still in hand and gives it to the peers; without a queue its leases run out."""
        unfinished = list(self._in_hand.values())
        for one in unfinished:
            if one.work is not None:
                await _end(one.work)
        held = [one for one in unfinished if one.work is None or one.work.cancelled()]
        if not held:
            return
        try:
            await asyncio.wait_for(self.queue.release([one.claim for one in held]), _FAREWELL_SECONDS)
            self.counts.finished.labels(result="released").inc(len(held))
        except (FairleadError, TimeoutError) as error:
            logger.warning("%d tasks could not be given back, their leases run out: %s", len(held), error)

    async def _ask(self, what: str, call: Callable[[], Awaitable[_T]]) -> _T:
        """Asks the queue until it answers; results wait in memory meanwhile."""
        with watchdog.PROCESS.waiting("queue", f"the queue's answer to {what}"):
            return await self._ask_patiently(what, call)

    async def _ask_patiently(self, what: str, call: Callable[[], Awaitable[_T]]) -> _T:
        pause = _FIRST_QUEUE_RETRY_SECONDS
        while True:
            try:
                answer = await call()
            except QueueUnavailable as error:
                if self._queue_answers:
                    self._queue_answers = False
                    logger.warning("the queue does not answer (%s), trying again: %s", what, error)
                await asyncio.sleep(random.uniform(pause / 2, pause))
                pause = min(2 * pause, _LONGEST_QUEUE_RETRY_SECONDS)
            else:
                if not self._queue_answers:
                    self._queue_answers = True
                    logger.info("the queue answers again")
                return answer


async def _wait(event: asyncio.Event, timeout_seconds: float | None) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_seconds)
    except TimeoutError:
        return


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancels a task and waits for it; its error, if any, stays in it."""
    task.cancel()
    await asyncio.wait({task})
