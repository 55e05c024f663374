"""Send tasks, wait for the outcomes of a batch, reconcile the queue: the start of step 6 of a rollout's life.

The layer between trainer and queue. The trainer's own ledger decides whether a task counts, never the queue,
which may lose or bring back anything. Knows nothing about tensors.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from fairlead.config.infrastructure import QueueSection
from fairlead.errors import CorruptOutcome, Fenced, QueueUnavailable, Stalled
from fairlead.metrics import TrainerMetrics
from fairlead.transports.rollouts.base import OutcomeEntry, QueueStats, TrainerQueue
from fairlead.transports.weights.base import Ancestor
from fairlead.types import PromptTask, WeightVersion
from trainer.ppo import task_traces
from trainer.ppo.admission import DAMAGED, checked, oldest_update, refusal
from trainer.ppo.dynamic_sampling import DynamicSampling
from trainer.ppo.outcome_entries import OutcomeEntries
from trainer.ppo.retry_queue import QueueRetry
from trainer.ppo.selection import next_batch
from trainer.ppo.task_records import TaskRecords

logger = logging.getLogger(__name__)

READ_COUNT = 256
"""Outcomes read at a time."""
_BLOCK_SECONDS = 1.0


class Collector:
    """Collects the outcomes of each batch from the queue."""

    def __init__(
        self,
        queue: TrainerQueue,
        *,
        records: TaskRecords,
        lineage: Sequence[Ancestor],
        section: QueueSection,
        on_wait: Callable[[str], None],
        metrics: TrainerMetrics | None = None,
        deterministic: bool = False,
    ) -> None:
        """
        Args:
            queue: the trainer's side of the queue.
            records: ledger, journal and event log of the run.
            lineage: incarnations whose weights count, this one last.
            section: time limits.
            on_wait: called while waiting with what is waited for.
            metrics: counts tasks by event.
            deterministic: accept only dead letters whose cause is the task itself.
        """
        self._queue = queue
        self._lineage = lineage
        self._ledger = records.ledger
        self._journal = records.journal
        self._events = records.events
        self._section = section
        self._on_wait = on_wait
        self._metrics = metrics
        self._deterministic = deterministic
        self._retry = QueueRetry(section, on_wait)
        self._block_seconds = min(_BLOCK_SECONDS, section.stall_seconds)
        self._update = 0
        self._max_staleness = 0
        self._open: dict[int, PromptTask] = {}
        # Open task → the oldest weights, in updates, that may have answered it: bounds the time it has.
        self._answered_by: dict[int, int] = {}
        # Open task → when this trainer sent it last, on the monotonic clock.
        self._sent_at: dict[int, float] = {}
        self._admitted: dict[int, OutcomeEntry] = {}
        # Admitted task → whether it has a signal; with dynamic sampling.
        self._signals: dict[int, bool] = {}
        self.set_aside: list[OutcomeEntry] = []
        """Groups without signal that belong to the update of the batch that `wait` has returned."""
        self._damaged = Counter[int]()
        self._entries = OutcomeEntries(queue, records.events)
        # Reconcile before anything is sent: an earlier trainer or a lost connection may have left something.
        self._must_reconcile = True

    def send(self, tasks: Sequence[PromptTask], *, update: int, max_staleness: int = 0) -> None:
        """Open tasks for the update numbered `update` and later ones, and dispatch them.

        Does not wait: what the queue cannot take now is sent by `wait`. Tasks that were under way before a
        restart are not sent again. Rollouts that have become too stale (after a fault) are dropped and their
        tasks sent again.
        """
        self._update = update
        self._max_staleness = max_staleness
        new = {task.task_id: task for task in tasks if not self._ledger.is_settled(task.task_id)}
        self._open |= new
        # Before the first reconciliation an earlier trainer may have sent them, up to max_staleness ago.
        sent_at = update - max_staleness if self._must_reconcile else update
        self._answered_by |= dict.fromkeys(new, sent_at)
        self._count("dispatched", len(new))
        if new and not self._must_reconcile:
            self._events.sent(new, update=update)
            self._sent_at |= dict.fromkeys(new, time.monotonic())
            try:
                self._dispatch(list(new.values()))
            except QueueUnavailable:
                self._must_reconcile = True
        self._drop_stale()

    def wait(self, *, size: int | None = None, dynamic: DynamicSampling | None = None) -> list[OutcomeEntry]:
        """Return the outcomes of the next batch, in the order of task ids; their tasks are no longer open.

        Args:
            size: tasks of the batch; None: all open tasks.
            dynamic: puts groups without signal into `set_aside`, with a further task for each.

        Raises:
            Stalled: if nothing arrived for `give_up_seconds`; names the tasks waited for.
            Fenced: if a newer trainer has taken over.
        """
        last_arrival = time.monotonic()
        reconciled = last_arrival
        if self._admitted:
            self._drain()
        while (batch := self._next_batch(size, dynamic)) is None:
            if self._must_reconcile:
                begun = time.monotonic()
                self._retry.call(self._reconcile)
                reconciled = time.monotonic()
                last_arrival += reconciled - begun  # time without a queue does not count as a stall
            self._on_wait(self._waited_for())
            try:
                arrived = self._read(block_seconds=self._block_seconds)
            except QueueUnavailable as error:
                logger.warning("the queue is unavailable: %s", error)
                self._must_reconcile = True
                continue
            now = time.monotonic()
            if arrived:
                last_arrival = now
            idle_seconds = now - last_arrival
            if idle_seconds > self._section.give_up_seconds:
                raise Stalled(f"no rollout arrived for {idle_seconds:.0f} s; missing: {self._waited_for()}")
            if now - max(last_arrival, reconciled) > self._section.stall_seconds:
                logger.warning("no rollout arrived for %.0f s: reconciling the queue", idle_seconds)
                self._must_reconcile = True
        self.set_aside = self._close([] if dynamic is None else self._aside(dynamic))
        self._observe_ages(batch)
        return self._close(batch)

    def settled(self, entries: Iterable[OutcomeEntry], *, checkpoint_update: int) -> None:
        """Delete the entries that no resume can use; call it when ledger and journal hold the outcomes.

        A rollout of weights newer than the last checkpoint would be void after a resume. The others stay
        until `checkpointed`, so that a resume finds them.
        """
        for entry in entries:
            if any(version.update > checkpoint_update for version in entry.outcome.versions):
                self._entries.discard([entry.entry_id])
            else:
                self._entries.retain(entry.entry_id)
        self._delete()

    def checkpointed(self, update: int) -> None:
        """Delete all settled entries; call it when the checkpoint of `update` holds their outcomes."""
        self._events.checkpoint(update)
        self._entries.discard_retained()
        self._delete()

    def stats(self) -> QueueStats | None:
        """Return the sizes of the queue, or None if Redis does not answer."""
        try:
            return self._queue.stats()
        except QueueUnavailable:
            self._must_reconcile = True
            return None

    def _dispatch(self, tasks: Sequence[PromptTask]) -> None:
        begun = time.time_ns()
        sendings = self._queue.dispatch(tasks)
        task_traces.dispatched(tasks, sendings, begun_ns=begun, update=self._update)

    def _close(self, task_ids: Sequence[int]) -> list[OutcomeEntry]:
        """Remove tasks from the open ones; return their outcomes."""
        for task_id in task_ids:
            del self._open[task_id]
            del self._answered_by[task_id]
            del self._damaged[task_id]
            self._sent_at.pop(task_id, None)
            self._signals.pop(task_id, None)
        return [self._admitted.pop(task_id) for task_id in task_ids]

    def _aside(self, dynamic: DynamicSampling) -> list[int]:
        """Return the admitted tasks without signal that this update sets aside."""
        for task_id in self._admitted.keys() - self._signals.keys():
            self._signals[task_id] = dynamic.has_signal(self._admitted[task_id].outcome)
        return dynamic.aside(task_id for task_id, has_signal in self._signals.items() if not has_signal)

    def _next_batch(self, size: int | None, dynamic: DynamicSampling | None) -> list[int] | None:
        aside: set[int] = set()
        if dynamic is not None:
            aside = set(self._aside(dynamic))
            dynamic.open_tasks(len(aside))
        deadlines = {
            task_id: answered_by + self._max_staleness
            for task_id, answered_by in self._answered_by.items()
            if task_id not in aside
        }
        return next_batch(
            deadlines,
            self._admitted.keys() - aside,
            update=self._update,
            size=len(deadlines) if size is None else size,
        )

    def _drain(self) -> None:
        """Read what arrived during the update without waiting: it may be older than what was admitted."""
        try:
            if self._must_reconcile:
                self._reconcile()
            self._read(block_seconds=0.0)
        except QueueUnavailable:
            self._must_reconcile = True

    def _drop_stale(self) -> None:
        """Discard rollouts that no update can train any more."""
        oldest = self._update - self._max_staleness
        stale = [task_id for task_id in self._admitted if self._answered_by[task_id] < oldest]
        if stale:
            for task_id in stale:
                self._signals.pop(task_id, None)
            self._discard([self._admitted.pop(task_id) for task_id in stale], "stale")
            self._answered_by |= dict.fromkeys(stale, self._update)

    def _read(self, *, block_seconds: float) -> bool:
        """Read once; return whether an open task was admitted."""
        try:
            entries = self._queue.read(
                after=self._entries.position, count=READ_COUNT, block_seconds=block_seconds
            )
        except CorruptOutcome as error:
            self._entries.position = error.entry_id
            if not self._entries.is_retained(error.entry_id):  # else it counts until a resume reads it again
                logger.error("an outcome cannot be decoded; its task is sent again: %s", error)
                self._entries.discard([error.entry_id])
                self._delete()
                self._must_reconcile = True
            return False
        before = len(self._admitted)
        refused: dict[str, list[OutcomeEntry]] = {}
        for entry in entries:
            self._entries.position = entry.entry_id
            reason = self._admit(entry)
            if reason is not None:
                refused.setdefault(reason, []).append(entry)
        for reason, members in refused.items():
            self._discard(members, reason)
        return len(self._admitted) > before

    def _admit(self, entry: OutcomeEntry) -> str | None:
        """Admit an entry to a batch, or return why it has to be discarded."""
        task_id = entry.outcome.task.task_id
        known = self._admitted.get(task_id)
        if self._entries.is_known(entry.entry_id) or (known and known.entry_id == entry.entry_id):
            return None  # read again from the start of the stream
        if self._ledger.is_settled(task_id) or known:
            return "repeated"
        if task_id not in self._open:
            return "not_open"
        reason = refusal(
            entry.outcome,
            self._open[task_id],
            update=self._update,
            max_staleness=self._max_staleness,
            lineage=self._lineage,
            deterministic=self._deterministic,
            damaged_before=self._damaged[task_id],
        )
        self._damaged[task_id] += reason == DAMAGED
        if reason is None:
            outcome = checked(entry.outcome)
            self._admitted[task_id] = replace(entry, outcome=outcome)
            self._answered_by[task_id] = oldest_update(outcome, otherwise=self._update)
        return reason

    def _discard(self, entries: Sequence[OutcomeEntry], reason: str) -> None:
        """Journal and delete entries that cannot count; their open tasks are sent again."""
        self._journal.append(entries, event=reason, update=self._update)
        self._count("repeated" if reason == "repeated" else "stale", len(entries))
        logger.info("%d outcomes discarded: %s", len(entries), reason)
        self._entries.discard(entry.entry_id for entry in entries)
        self._delete()
        if any(entry.outcome.task.task_id in self._open for entry in entries) and reason != "repeated":
            self._must_reconcile = True

    def _delete(self) -> None:
        try:
            self._entries.delete(update=self._update)
        except QueueUnavailable:
            self._must_reconcile = True  # which repeats the deletion

    def _reconcile(self) -> None:
        """Make the queue agree with the ledger: send missing tasks, delete settled outcomes."""
        incarnation = self._lineage[-1].incarnation
        self._check_fence(incarnation)
        snapshot = self._queue.snapshot()
        answered, settled_count = self._entries.reconcile(
            snapshot.outcome_tasks(), is_settled=self._ledger.is_settled, update=self._update
        )
        present = snapshot.tasks_under_way() | answered
        missing = [
            task
            for task_id, task in self._open.items()
            if task_id not in self._admitted and task_id not in present
        ]
        if missing:
            # From now on these tasks are answered by the current weights.
            version = WeightVersion(incarnation, self._update)
            self._events.sent((task.task_id for task in missing), update=self._update)
            self._dispatch([replace(task, min_version=version) for task in missing])
            self._answered_by |= dict.fromkeys((task.task_id for task in missing), self._update)
            # A task that this trainer has not sent yet is not sent again: a fresh run begins like this.
            self._count("resent", sum(task.task_id in self._sent_at for task in missing))
            self._sent_at |= dict.fromkeys((task.task_id for task in missing), time.monotonic())
        logger.info(
            "queue reconciled: %d tasks sent, %d under way, %d settled outcomes deleted",
            len(missing),
            len(present & self._open.keys()),
            settled_count,
        )
        self._entries.position = "0"
        self._must_reconcile = False

    def _check_fence(self, incarnation: int) -> None:
        """Set the fence again if the queue has lost it.

        Raises:
            Fenced: if a newer trainer holds it.
        """
        known = self._queue.known_incarnation()
        if known > incarnation:
            raise Fenced(f"incarnation {known} of the trainer has taken over from {incarnation}")
        if known < incarnation:
            logger.warning(
                "the queue lost its fence: it holds incarnation %d instead of %d; setting it again",
                known,
                incarnation,
            )
            self._queue.take_fence(incarnation)

    def _waited_for(self) -> str:
        missing = sorted(self._open.keys() - self._admitted.keys())
        shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        return f"{len(missing)} of {len(self._open)} tasks of update {self._update}: {shown}"

    def _observe_ages(self, task_ids: Sequence[int]) -> None:
        """Record for metrics how long ago the tasks of a batch were sent."""
        if self._metrics is None:
            return
        now = time.monotonic()
        for task_id in task_ids:
            sent_at = self._sent_at.get(task_id)
            if sent_at is not None and self._admitted[task_id].outcome.rollouts:
                self._metrics.rollout_age_seconds.observe(now - sent_at)

    def _count(self, event: str, number: int) -> None:
        if self._metrics is not None and number:
            self._metrics.tasks.labels(event=event).inc(number)
