"""What a trainer does to the queue, written down for an audit: it begins, sends, checkpoints, deletes.

Stands beside the journal of outcomes and is only written to: nothing that a trainer decides depends on it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead.config import RunFolder
from fairlead.config.training import PpoSection
from trainer import durable
from trainer.ppo.ledger import Journal, Ledger


class EventLog:
    """Appends to `events.jsonl`, a line a call however many tasks it concerns."""

    def __init__(self, path: Path, *, incarnation: int) -> None:
        self._incarnation = incarnation
        self._file = durable.open_lines(path)

    def begun(self, update: int, section: PpoSection) -> None:
        """The incarnation took up after so many updates, with these terms."""
        terms = {name: getattr(section, name) for name in ("batch_size", "max_staleness", "updates")}
        self._append("begun", update, durable_line=True, terms=terms)

    def sent(self, task_ids: Iterable[int], *, update: int) -> None:
        """Tasks are about to be sent. On the disk before they are: what counts is always known to be sent."""
        if ranges := as_ranges(task_ids):
            self._append("sent", update, durable_line=True, tasks=ranges)

    def checkpoint(self, update: int) -> None:
        """A checkpoint is written."""
        self._append("checkpoint", update)

    def deleted(self, entry_ids: Sequence[str], *, update: int) -> None:
        """Outcomes have left the queue."""
        if entry_ids:
            self._append("deleted", update, entries=entry_ids)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _append(self, event: str, update: int, *, durable_line: bool = False, **content: object) -> None:
        line = {"event": event, "incarnation": self._incarnation, "update": update, "time": time.time()}
        self._file.write(f"{durable.dumps(line | content)}\n".encode())
        self._file.flush()
        if durable_line:
            os.fsync(self._file.fileno())


@dataclass(frozen=True, slots=True)
class Books:
    """All that a trainer writes down about its tasks."""

    ledger: Ledger
    """What became of every task; goes into the checkpoints."""
    journal: Journal
    """Every outcome."""
    events: EventLog
    """What was done to the queue."""

    @classmethod
    def open(cls, folder: RunFolder, ledger: Ledger, *, incarnation: int) -> Books:
        """The files of a run, opened by an incarnation."""
        journal = Journal(folder.ledger, incarnation=incarnation)
        return cls(ledger, journal, EventLog(folder.events, incarnation=incarnation))

    def close(self) -> None:
        """Closes the files."""
        self.journal.close()
        self.events.close()


def as_ranges(numbers: Iterable[int]) -> list[list[int]]:
    """[first, last] of every run of consecutive numbers, in order."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges
