"""A queue in the memory of one process, for unit tests of the worker and the trainer.

It keeps the rules of docs/queue-protocol.md and passes the same conformance suite as Redis. Threads may share
a broker: the trainer's side blocks one thread, the worker's side waits in an event loop. The clock can be
injected.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fairlead.codec import encode_outcome, encode_task
from fairlead.errors import CorruptData, Fenced
from fairlead.transports.rollouts.base import (
    UNDECODABLE,
    Claim,
    OutcomeEntry,
    QueuedOutcome,
    QueuedPrompt,
    QueueSnapshot,
    QueueStats,
    Sending,
)
from fairlead.transports.rollouts.redis_connection import RETURNED
from fairlead.transports.rollouts.redis_trainer import decode_outcome_entry, entries_before_corrupt
from fairlead.transports.rollouts.redis_worker import Delivery
from fairlead.types import DeadLetter, Outcome, PromptTask, TaskResult

_POLL_SECONDS = 0.005


class QueuedSending(NamedTuple):
    """A sending in the prompts stream."""

    task_id: int
    sending: Sending
    payload: bytes


@dataclass(slots=True)
class _Lease:
    """A delivered prompt that is not acknowledged."""

    consumer: str | None
    since: float
    deliveries: int


@dataclass(slots=True)
class _Open:
    """The open sending of a task."""

    sending: Sending
    failures: int
    entry: int


class MemoryBroker:
    """The state that Redis would hold, and the rules of its scripts."""

    def __init__(
        self,
        *,
        lease_seconds: float = 3.0,
        max_failures: int = 3,
        max_deliveries: int = 50,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lease_seconds = lease_seconds
        self.max_failures = max_failures
        self.max_deliveries = max_deliveries
        self.clock = clock
        self.changed = threading.Condition(threading.RLock())
        self.entries = itertools.count(1)
        self.prompts: dict[int, QueuedSending] = {}
        self.last_delivered = 0
        self.leases: dict[int, _Lease] = {}
        self.open: dict[int, _Open] = {}
        self.numbers: dict[tuple[int, int], int] = {}
        self.outcomes: dict[int, tuple[int, Sending, bytes]] = {}
        self.incarnation = 0

    def worker(self, consumer: str) -> MemoryWorkerQueue:
        """Return the queue of a worker."""
        return MemoryWorkerQueue(self, consumer)

    def trainer(self) -> MemoryTrainerQueue:
        """Return the queue of a trainer."""
        return MemoryTrainerQueue(self)

    def open_failures(self, task_id: int, sending: Sending, entry: int) -> int | None:
        """Return the explicit failures of a sending if it is open, else None."""
        found = self.open.get(task_id)
        if found is not None and found.sending == sending and found.entry == entry:
            return found.failures
        return None

    def acknowledge(self, entry: int) -> None:
        """Remove an entry from the pending ones and trim the head of the stream."""
        self.leases.pop(entry, None)
        oldest = min(self.leases, default=self.last_delivered)
        self.prompts = {entry: found for entry, found in self.prompts.items() if entry >= oldest}

    def finish(self, claim: Claim, outcome: Outcome) -> bool:
        """Close a sending with its outcome, if it is open."""
        entry, task_id = int(claim.entry_id), claim.task.task_id
        with self.changed:
            is_open = self.open_failures(task_id, claim.sending, entry) is not None
            if is_open:
                self.outcomes[next(self.entries)] = (task_id, claim.sending, encode_outcome(outcome))
                del self.open[task_id]
            self.acknowledge(entry)
            self.changed.notify_all()
            return is_open

    def give_back(self, lease: _Lease) -> None:
        """Make the entry available to the next claim of any worker."""
        lease.consumer = None
        lease.since = float("-inf")

    def take(self, consumer: str, count: int) -> list[Delivery]:
        """Deliver entries with expired leases, then new ones; acknowledge those of closed sendings."""
        with self.changed:
            now = self.clock()
            due = now - self.lease_seconds
            expired = [entry for entry, lease in sorted(self.leases.items()) if lease.since <= due]
            fresh = [entry for entry in self.prompts if entry > self.last_delivered]
            taken: list[Delivery] = []
            for entry in [*expired, *fresh]:
                if len(taken) == count:
                    break
                self.last_delivered = max(self.last_delivered, entry)
                if entry not in self.prompts:
                    self.leases.pop(entry, None)
                    continue
                deliveries = self.leases[entry].deliveries + 1 if entry in self.leases else 1
                self.leases[entry] = _Lease(consumer, now, deliveries)
                prompt = self.prompts[entry]
                failures = self.open_failures(prompt.task_id, prompt.sending, entry)
                if failures is None:
                    self.acknowledge(entry)
                    continue
                taken.append(Delivery(str(entry), deliveries, failures, *prompt))
            return taken


class MemoryWorkerQueue:
    """WorkerQueue on a MemoryBroker; see `base.WorkerQueue`."""

    def __init__(self, broker: MemoryBroker, consumer: str) -> None:
        self._broker = broker
        self._consumer = consumer

    async def claim(self, *, count: int, block_seconds: float) -> Sequence[Claim]:
        """See `WorkerQueue.claim`."""
        deadline = time.monotonic() + block_seconds
        while True:
            claims = []
            for delivery in self._broker.take(self._consumer, count):
                try:
                    claim = delivery.claim()
                except CorruptData as error:
                    await self.finish(delivery.claim_without_prompt(), DeadLetter(UNDECODABLE, str(error)))
                    continue
                if claim.deliveries > self._broker.max_deliveries:
                    detail = f"delivered {claim.deliveries} times, allowed: {self._broker.max_deliveries}"
                    await self.finish(claim, DeadLetter("too_many_deliveries", detail))
                else:
                    claims.append(claim)
            if claims or time.monotonic() >= deadline:
                return claims
            await asyncio.sleep(_POLL_SECONDS)

    async def renew(self, claims: Iterable[Claim]) -> frozenset[str]:
        """See `WorkerQueue.renew`."""
        lost = set()
        with self._broker.changed:
            for claim in claims:
                entry = int(claim.entry_id)
                lease = self._broker.leases.get(entry)
                if self._broker.open_failures(claim.task.task_id, claim.sending, entry) is None:
                    self._broker.acknowledge(entry)
                    lost.add(claim.entry_id)
                elif lease is None or lease.consumer != self._consumer:
                    lost.add(claim.entry_id)
                elif entry not in self._broker.prompts:
                    del self._broker.leases[entry]
                    lost.add(claim.entry_id)
                else:
                    lease.since = self._broker.clock()
        return frozenset(lost)

    async def finish(self, claim: Claim, result: TaskResult) -> bool:
        """See `WorkerQueue.finish`."""
        outcome = Outcome(claim.task, result, self._consumer, claim.deliveries, claim.failures)
        return self._broker.finish(claim, outcome)

    async def fail(self, claim: Claim, letter: DeadLetter) -> bool:
        """See `WorkerQueue.fail`."""
        entry, task_id = int(claim.entry_id), claim.task.task_id
        with self._broker.changed:
            failures = self._broker.open_failures(task_id, claim.sending, entry)
            if failures is None:
                self._broker.acknowledge(entry)
                return False
            lease = self._broker.leases.get(entry)
            if lease is None or lease.consumer != self._consumer:
                return False
            if failures + 1 >= self._broker.max_failures:
                return await self.finish(claim, letter)
            self._broker.open[task_id].failures = failures + 1
            self._broker.give_back(lease)
            return False

    async def release(self, claims: Iterable[Claim]) -> None:
        """See `WorkerQueue.release`."""
        with self._broker.changed:
            for claim in claims:
                lease = self._broker.leases.get(int(claim.entry_id))
                if lease is not None and lease.consumer == self._consumer:
                    lease.deliveries = max(0, lease.deliveries - 1)
                    self._broker.give_back(lease)

    async def close(self) -> None:
        """See `WorkerQueue.close`."""


class MemoryTrainerQueue:
    """TrainerQueue on a MemoryBroker; see `base.TrainerQueue`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._incarnation = 0

    def known_incarnation(self) -> int:
        """See `TrainerQueue.known_incarnation`."""
        return self._broker.incarnation

    def take_fence(self, incarnation: int) -> None:
        """See `TrainerQueue.take_fence`. Safe to repeat by the trainer that holds it."""
        with self._broker.changed:
            if self._broker.incarnation > incarnation or (
                self._broker.incarnation == incarnation != self._incarnation
            ):
                raise Fenced(f"incarnation {self._broker.incarnation} holds the fence")
            self._broker.incarnation = self._incarnation = incarnation

    def dispatch(self, tasks: Sequence[PromptTask]) -> Sequence[Sending]:
        """See `TrainerQueue.dispatch`."""
        sendings: list[Sending] = []
        with self._broker.changed:
            self._check_fence()
            for task in tasks:
                key = (self._incarnation, task.task_id)
                number = self._broker.numbers[key] = self._broker.numbers.get(key, 0) + 1
                entry, sending = next(self._broker.entries), Sending(self._incarnation, number)
                self._broker.prompts[entry] = QueuedSending(task.task_id, sending, encode_task(task))
                self._broker.open[task.task_id] = _Open(sending, 0, entry)
                sendings.append(sending)
            self._broker.changed.notify_all()
        return sendings

    def read(self, *, after: str, count: int, block_seconds: float) -> Sequence[OutcomeEntry]:
        """See `TrainerQueue.read`."""

        def later() -> list[int]:
            return [entry for entry in self._broker.outcomes if entry > int(after)]

        with self._broker.changed:
            if block_seconds > 0:
                self._broker.changed.wait_for(lambda: bool(later()), timeout=block_seconds)
            return entries_before_corrupt(
                decode_outcome_entry(str(entry), *self._broker.outcomes[entry]) for entry in later()[:count]
            )

    def delete(self, entry_ids: Iterable[str]) -> None:
        """See `TrainerQueue.delete`."""
        with self._broker.changed:
            self._check_fence()
            for entry_id in entry_ids:
                self._broker.outcomes.pop(int(entry_id), None)

    def snapshot(self) -> QueueSnapshot:
        """See `TrainerQueue.snapshot`."""
        with self._broker.changed:
            return QueueSnapshot(
                incarnation=self._broker.incarnation,
                prompts=tuple(self._queued_prompt(entry) for entry in self._broker.prompts),
                outcomes=tuple(
                    QueuedOutcome(str(entry), task_id, sending, len(payload))
                    for entry, (task_id, sending, payload) in self._broker.outcomes.items()
                ),
                failures={task_id: found.failures for task_id, found in self._broker.open.items()},
            )

    def stats(self) -> QueueStats:
        """See `TrainerQueue.stats`. The memory is that of the outcomes only."""
        with self._broker.changed:
            waiting = sum(entry > self._broker.last_delivered for entry in self._broker.prompts)
            size = sum(len(payload) for _, _, payload in self._broker.outcomes.values())
            return QueueStats(waiting, len(self._broker.leases), len(self._broker.outcomes), size, size)

    def close(self) -> None:
        """See `TrainerQueue.close`."""

    def _queued_prompt(self, entry: int) -> QueuedPrompt:
        task_id, sending, _ = self._broker.prompts[entry]
        lease = self._broker.leases.get(entry)
        return QueuedPrompt(
            entry=str(entry),
            task=task_id,
            sending=sending,
            is_open=self._broker.open_failures(task_id, sending, entry) is not None,
            worker=(lease.consumer or RETURNED) if lease else "",
            deliveries=lease.deliveries if lease else 0,
            idle_seconds=self._broker.clock() - lease.since if lease else 0.0,
            is_new=entry > self._broker.last_delivered,
        )

    def _check_fence(self) -> None:
        if self._incarnation == 0:
            raise Fenced("this trainer has not taken the fence")
        if self._broker.incarnation > self._incarnation:
            raise Fenced(f"incarnation {self._broker.incarnation} holds the fence")
        self._broker.incarnation = self._incarnation
