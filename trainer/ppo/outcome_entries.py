"""Track which entries of the outcomes stream the trainer has handled, and which of them may be deleted.

Used by the collector. Knows the ids of entries, but nothing about the ledger or rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from fairlead.transports.rollouts.base import TrainerQueue
from trainer.ppo.task_records import EventLog


class OutcomeEntries:
    """The position in the outcomes stream, and the fate of the entries that were read.

    Invariant: an entry that was read and is no longer needed by the collector is in exactly one of two sets.

    - retained: its outcome counts, and a resume from the last checkpoint would have to read it again. It
      stays in the queue until the next checkpoint is written.
    - discarded: no resume can need it. It stays in this set until the queue has confirmed its deletion, so a
      failed deletion is repeated.

    An entry moves from retained to discarded, never back.
    """

    def __init__(self, queue: TrainerQueue, events: EventLog) -> None:
        self._queue = queue
        self._events = events
        self._retained: set[str] = set()
        self._discarded: set[str] = set()
        self.position = "0"
        """Entries after this one have not been read yet."""

    def is_retained(self, entry_id: str) -> bool:
        """Return whether the entry counts and stays until the next checkpoint."""
        return entry_id in self._retained

    def is_known(self, entry_id: str) -> bool:
        """Return whether the entry is retained or discarded: reading it again changes nothing."""
        return entry_id in self._retained or entry_id in self._discarded

    def retain(self, entry_id: str) -> None:
        """Keep an entry in the queue until the next checkpoint."""
        self._retained.add(entry_id)

    def discard(self, entry_ids: Iterable[str]) -> None:
        """Mark entries for the next `delete`."""
        self._discarded.update(entry_ids)

    def discard_retained(self) -> None:
        """Mark all retained entries for the next `delete`: a checkpoint now holds their outcomes."""
        self._discarded |= self._retained
        self._retained.clear()

    def delete(self, *, update: int) -> None:
        """Delete the discarded entries from the queue.

        Raises:
            QueueUnavailable: if Redis does not answer; the entries stay discarded.
        """
        entry_ids = sorted(self._discarded)
        self._queue.delete(entry_ids)
        self._events.deleted(entry_ids, update=update)
        self._discarded.clear()

    def reconcile(
        self, outcomes: Mapping[str, int], *, is_settled: Callable[[int], bool], update: int
    ) -> tuple[set[int], int]:
        """Delete every entry in the queue that is discarded or whose task is settled, unless it is retained.

        Args:
            outcomes: every entry in the queue and its task; a negative task is unreadable.
            is_settled: whether a task was trained on or is dead.
            update: updates done, for the event log.

        Returns:
            The tasks whose outcomes remain in the queue, and the number of settled entries found.

        Raises:
            QueueUnavailable: if Redis does not answer; the entries stay discarded.
        """
        settled = {
            entry_id
            for entry_id, task_id in outcomes.items()
            if (task_id < 0 or is_settled(task_id)) and entry_id not in self._retained
        }
        self._discarded = (self._discarded | settled) & outcomes.keys()
        remaining = {task_id for entry_id, task_id in outcomes.items() if entry_id not in self._discarded}
        if self._discarded:
            self.delete(update=update)
        return remaining, len(settled)
