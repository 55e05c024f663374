"""Between trainer and queue: sends tasks, waits for the outcomes of a batch, reconciles.

A task is admitted by the trainer's own ledger, never by the queue, which may lose or bring back anything.
Step 6 of a rollout's life begins here. Knows no tensors.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from fairlead import metrics
from fairlead.config.infrastructure import QueueSection
from fairlead.errors import CorruptOutcome, Fenced, QueueUnavailable, Stalled
from fairlead.transports.rollouts.base import OutcomeEntry, QueueStats, TrainerQueue
from fairlead.transports.weights.base import Ancestor
from fairlead.types import PromptTask, Rollout, WeightVersion
from trainer.ppo.admission import DAMAGED, checked, oldest_update, refusal
from trainer.ppo.events import Books
from trainer.ppo.patience import Patience
from trainer.ppo.selection import next_batch

logger = logging.getLogger(__name__)

READ_COUNT = 256
"""Outcomes read at a time."""
_BLOCK_SECONDS = 1.0


class Collector:
    """Gets one batch after the other through the queue."""

    def __init__(
        self,
        queue: TrainerQueue,
        *,
        books: Books,
        lineage: Sequence[Ancestor],
        section: QueueSection,
        on_wait: Callable[[str], None],
        gauges: metrics.TrainerMetrics | None = None,
        deterministic: bool = False,
    ) -> None:
        self._queue, self._lineage = queue, lineage
        self._ledger, self._journal, self._events = books.ledger, books.journal, books.events
        self._section, self._on_wait, self._gauges = section, on_wait, gauges
        self._patience = Patience(section, on_wait)
        self._deterministic = deterministic
        self._block_seconds = min(_BLOCK_SECONDS, section.stall_seconds)
        self._update = self._max_staleness = 0
        self._open: dict[int, PromptTask] = {}
        # Open task → the oldest weights, in updates, that may have answered it: bounds the time it has.
        self._answered_by: dict[int, int] = {}
        self._admitted: dict[int, OutcomeEntry] = {}
        self._damaged = Counter[int]()
        self._after = "0"
        # Whatever an earlier trainer or a lost connection left must be looked at before anything is sent.
        self._must_reconcile = True
        self._retained: set[str] = set()
        self._discarded: set[str] = set()

    def send(self, tasks: Sequence[PromptTask], *, update: int, max_staleness: int = 0) -> None:
        """Opens tasks; update number `update` is next. What is under way from before a restart stays.

        Does not wait: what the queue cannot take now is sent by `wait`. Rollouts that have become too stale
        (after a fault) are dropped and their tasks sent again.
        """
        self._update, self._max_staleness = update, max_staleness
        new = {task.task_id: task for task in tasks if not self._ledger.is_settled(task.task_id)}
        self._open |= new
        # Nothing was reconciled: an earlier trainer may have sent them, at any time that is not too long ago.
        sent_at = update - max_staleness if self._must_reconcile else update
        self._answered_by |= dict.fromkeys(new, sent_at)
        self._count("dispatched", len(new))
        if new and not self._must_reconcile:
            self._events.sent(new, update=update)
            try:
                self._queue.dispatch(list(new.values()))
            except QueueUnavailable:
                self._must_reconcile = True
        self._drop_stale()

    def wait(self, *, size: int | None = None) -> list[OutcomeEntry]:
        """The outcomes of the next batch, in the order of task ids; they are no longer open.

        Args:
            size: tasks of the batch; every open one by default.

        Raises:
            Stalled: if nothing arrived for `give_up_seconds`; names the tasks waited for.
            Fenced: if a newer trainer has taken over.
        """
        progress = reconciled = time.monotonic()
        if self._admitted:
            self._drain()
        while (batch := self._next_batch(size)) is None:
            if self._must_reconcile:
                begun = time.monotonic()
                self._patience.call(self._reconcile)
                reconciled = time.monotonic()
                progress += reconciled - begun  # an outage of the queue is nobody's idleness
            self._on_wait(self._waited_for())
            try:
                arrived = self._read(block_seconds=self._block_seconds)
            except QueueUnavailable as error:
                logger.warning("the queue is unavailable: %s", error)
                self._must_reconcile = True
                continue
            now = time.monotonic()
            progress = now if arrived else progress
            if now - progress > self._section.give_up_seconds:
                raise Stalled(f"nothing arrived for {now - progress:.0f} s; waited for {self._waited_for()}")
            if now - max(progress, reconciled) > self._section.stall_seconds:
                logger.warning("nothing arrived for %.0f s: reconciling", now - progress)
                self._must_reconcile = True
        for task_id in batch:
            del self._open[task_id], self._answered_by[task_id], self._damaged[task_id]
        return [self._admitted.pop(task_id) for task_id in batch]

    def settled(self, entries: Iterable[OutcomeEntry], *, checkpoint_update: int) -> None:
        """Called when the outcomes are in ledger and journal: drops the entries that no resume can use.

        A rollout of weights newer than the last checkpoint would be void after a resume. The others stay
        until `checkpointed`, so that a resume finds them.
        """
        for entry in entries:
            result = entry.outcome.result
            void = isinstance(result, Rollout) and any(
                span.version.update > checkpoint_update for span in result.completion.version_spans
            )
            (self._discarded if void else self._retained).add(entry.entry_id)
        self._delete()

    def checkpointed(self, update: int) -> None:
        """Called when every settled outcome is in the checkpoint of `update`: their entries may go."""
        self._events.checkpoint(update)
        self._discarded |= self._retained
        self._retained.clear()
        self._delete()

    def stats(self) -> QueueStats | None:
        """Sizes of the queue, None if it does not answer."""
        try:
            return self._queue.stats()
        except QueueUnavailable:
            self._must_reconcile = True
            return None

    def _next_batch(self, size: int | None) -> list[int] | None:
        deadlines = {
            task_id: answered_by + self._max_staleness for task_id, answered_by in self._answered_by.items()
        }
        return next_batch(
            deadlines,
            self._admitted.keys(),
            update=self._update,
            size=len(deadlines) if size is None else size,
        )

    def _drain(self) -> None:
        """Takes what arrived during the update, without waiting: it may be older than what is here."""
        try:
            if self._must_reconcile:
                self._reconcile()
            self._read(block_seconds=0.0)
        except QueueUnavailable:
            self._must_reconcile = True

    def _drop_stale(self) -> None:
        """Discards rollouts that no update can train any more."""
        oldest = self._update - self._max_staleness
        stale = [task_id for task_id in self._admitted if self._answered_by[task_id] < oldest]
        if stale:
            self._discard([self._admitted.pop(task_id) for task_id in stale], "stale")
            self._answered_by |= dict.fromkeys(stale, self._update)

    def _read(self, *, block_seconds: float) -> bool:
        """Reads once; True if an open task was admitted."""
        try:
            entries = self._queue.read(after=self._after, count=READ_COUNT, block_seconds=block_seconds)
        except CorruptOutcome as error:
            self._after = error.entry_id
            if error.entry_id not in self._retained:  # else it counts; who resumes without it sees to it
                logger.error("an outcome cannot be read, its task is sent again: %s", error)
                self._discarded.add(error.entry_id)
                self._delete()
                self._must_reconcile = True
            return False
        before = len(self._admitted)
        refused: dict[str, list[OutcomeEntry]] = {}
        for entry in entries:
            self._after = entry.entry_id
            reason = self._consider(entry)
            if reason is not None:
                refused.setdefault(reason, []).append(entry)
        for reason, members in refused.items():
            self._discard(members, reason)
        return len(self._admitted) > before

    def _consider(self, entry: OutcomeEntry) -> str | None:
        """Admits an entry, or says why it is to be discarded."""
        task_id = entry.outcome.task.task_id
        known = self._admitted.get(task_id)
        if entry.entry_id in self._retained | self._discarded or (known and known.entry_id == entry.entry_id):
            return None  # read again from the head
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
        """Journals and deletes entries that cannot count; open tasks are sent again."""
        self._journal.append(entries, event=reason, update=self._update)
        self._count("repeated" if reason == "repeated" else "stale", len(entries))
        logger.info("%d outcomes discarded: %s", len(entries), reason)
        self._discarded.update(entry.entry_id for entry in entries)
        self._delete()
        if any(entry.outcome.task.task_id in self._open for entry in entries) and reason != "repeated":
            self._must_reconcile = True

    def _delete(self) -> None:
        gone = sorted(self._discarded)
        try:
            self._queue.delete(gone)
        except QueueUnavailable:
            self._must_reconcile = True  # tried again then
        else:
            self._events.deleted(gone, update=self._update)
            self._discarded.clear()

    def _reconcile(self) -> None:
        """Makes the queue agree with the ledger: sends what is missing, drops what is settled."""
        known = self._queue.known_incarnation()
        mine = self._lineage[-1].incarnation
        if known > mine:
            raise Fenced(f"incarnation {known} of the trainer has taken over from {mine}")
        if known < mine:
            logger.warning("the queue has lost its fence: it knows incarnation %d, not %d", known, mine)
            self._queue.take_fence(mine)
        snapshot = self._queue.snapshot()
        outcomes = snapshot.outcome_tasks()
        gone = {
            entry_id
            for entry_id, task_id in outcomes.items()
            if (task_id < 0 or self._ledger.is_settled(task_id)) and entry_id not in self._retained
        }
        self._discarded = (self._discarded | gone) & outcomes.keys()
        if self._discarded:
            self._queue.delete(sorted(self._discarded))
            self._events.deleted(sorted(self._discarded), update=self._update)
        present = snapshot.tasks_under_way() | {
            task_id for entry_id, task_id in outcomes.items() if entry_id not in self._discarded
        }
        self._discarded.clear()
        missing = [
            task
            for task_id, task in self._open.items()
            if task_id not in self._admitted and task_id not in present
        ]
        if missing:
            # Whoever answers now answers with the weights of now.
            version = WeightVersion(mine, self._update)
            self._events.sent((task.task_id for task in missing), update=self._update)
            self._queue.dispatch([replace(task, min_version=version) for task in missing])
            self._answered_by |= dict.fromkeys((task.task_id for task in missing), self._update)
            self._count("resent", len(missing))
        logger.info(
            "reconciled: %d tasks sent, %d under way, %d settled entries dropped",
            len(missing),
            len(present & self._open.keys()),
            len(gone),
        )
        self._after = "0"
        self._must_reconcile = False

    def _waited_for(self) -> str:
        missing = sorted(self._open.keys() - self._admitted.keys())
        shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        return f"{len(missing)} of {len(self._open)} rollouts of update {self._update}: tasks {shown}"

    def _count(self, event: str, number: int) -> None:
        if self._gauges is not None and number:
            self._gauges.tasks.labels(event=event).inc(number)
