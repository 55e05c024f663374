"""Files in which a trainer records its tasks, appended line by line for audits and for the result.

`ledger.jsonl` (the journal) gets every outcome before its entry leaves the queue; `events.jsonl` gets what
the trainer does to the queue. No decision of the trainer depends on them: the ledger in the checkpoint is
the truth. Lines of abandoned lineages stay in the files; incarnation and update distinguish them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.config import RunFolder
from fairlead.config.training import PpoSection
from fairlead.transports.rollouts.base import OutcomeEntry
from fairlead.types import DeadLetter, Rollout
from trainer import durable
from trainer.ppo.progress import Ledger


class Journal:
    """Appends outcomes to `ledger.jsonl`; they are on disk when a call returns."""

    def __init__(self, path: Path, *, incarnation: int) -> None:
        self._incarnation = incarnation
        self._file = durable.open_lines(path)

    def append(self, entries: Iterable[OutcomeEntry], *, event: str | None = None, update: int) -> None:
        """Append one line per entry.

        Args:
            entries: outcomes as read from the queue.
            event: why the entries are discarded, or `no_signal`; None if they count as `trained` or
                `dead_letter`.
            update: updates done before these outcomes counted.
        """
        lines = [self._line(entry, event, update) for entry in entries]
        if lines:
            self._file.write("".join(f"{durable.dumps(line)}\n" for line in lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _line(self, entry: OutcomeEntry, event: str | None, update: int) -> dict[str, object]:
        outcome = entry.outcome
        result = outcome.result
        line: dict[str, object] = {
            "task": outcome.task.task_id,
            "event": event or ("dead_letter" if isinstance(result, DeadLetter) else "trained"),
            "incarnation": self._incarnation,
            "update": update,
            "entry": entry.entry_id,
            "sending": [entry.sending.incarnation, entry.sending.number],
            "worker": outcome.worker,
            "deliveries": outcome.deliveries,
            "failures": outcome.failures,
            "time": time.time(),
        }
        if isinstance(result, DeadLetter):
            return line | {"reason": result.reason, "detail": result.detail}
        return line | (_rollout(result[0]) if len(result) == 1 else _group(result))


def _rollout(rollout: Rollout) -> dict[str, object]:
    terms = {"terms": dict(rollout.terms)} if rollout.terms else {}
    return terms | {
        "score": rollout.score,
        "scored_as_text": rollout.scored_as_text,
        "tokens": len(rollout.completion.token_ids),
        "finish": _finish(rollout),
        "versions": [str(span.version) for span in rollout.completion.version_spans],
    }


def _group(rollouts: Sequence[Rollout]) -> dict[str, object]:
    """Return the fields of `_rollout` for all answers together, and the score and end of each."""
    scores = [rollout.score for rollout in rollouts]
    versions = {span.version for rollout in rollouts for span in rollout.completion.version_spans}
    terms = {"terms": [dict(rollout.terms) for rollout in rollouts]} if rollouts[0].terms else {}
    return terms | {
        "samples": len(rollouts),
        "score": sum(scores) / len(scores),
        "scores": scores,
        "scored_as_text": any(rollout.scored_as_text for rollout in rollouts),
        "tokens": sum(len(rollout.completion.token_ids) for rollout in rollouts),
        "finishes": [_finish(rollout) for rollout in rollouts],
        "versions": [str(version) for version in sorted(versions)],
    }


def _finish(rollout: Rollout) -> str | None:
    reason = rollout.completion.finish_reason
    return reason.value if reason else None


def read_journal(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield every line of the journal; lines cut short by a crash are skipped."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and {"task", "event", "incarnation", "update"} <= line.keys():
                yield line


class EventLog:
    """Appends to `events.jsonl`: one line per call, for any number of tasks."""

    def __init__(self, path: Path, *, incarnation: int) -> None:
        self._incarnation = incarnation
        self._file = durable.open_lines(path)

    def begun(self, update: int, section: PpoSection) -> None:
        """Record that the incarnation began after `update` updates, and the settings of its audit."""
        names = ("batch_size", "num_samples", "max_staleness", "updates")
        terms = {name: getattr(section, name) for name in names}
        if section.dynamic_sampling:
            terms["extra_tasks"] = section.extra_tasks
        self._append("begun", update, durable_line=True, terms=terms)

    def sent(self, task_ids: Iterable[int], *, update: int) -> None:
        """Record tasks before they are dispatched, on disk: no task can count without having been sent."""
        if ranges := as_ranges(task_ids):
            self._append("sent", update, durable_line=True, tasks=ranges)

    def checkpoint(self, update: int) -> None:
        """Record that a checkpoint was written."""
        self._append("checkpoint", update)

    def deleted(self, entry_ids: Sequence[str], *, update: int) -> None:
        """Record that outcomes were deleted from the queue."""
        if entry_ids:
            self._append("deleted", update, entries=entry_ids)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, event: str, update: int, *, durable_line: bool = False, **content: object) -> None:
        line = {"event": event, "incarnation": self._incarnation, "update": update, "time": time.time()}
        self._file.write(f"{durable.dumps(line | content)}\n".encode())
        self._file.flush()
        if durable_line:
            os.fsync(self._file.fileno())


@dataclass(frozen=True, slots=True)
class TaskRecords:
    """The three records of tasks that a trainer keeps."""

    ledger: Ledger
    """What became of every task; part of the checkpoints."""
    journal: Journal
    """Every outcome."""
    events: EventLog
    """What was done to the queue."""

    @classmethod
    def open(cls, folder: RunFolder, ledger: Ledger, *, incarnation: int) -> TaskRecords:
        """Open the files of a run for an incarnation."""
        journal = Journal(folder.ledger, incarnation=incarnation)
        return cls(ledger, journal, EventLog(folder.events, incarnation=incarnation))

    def close(self) -> None:
        """Close the files."""
        self.journal.close()
        self.events.close()


def as_ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Return [first, last] of every run of consecutive numbers, in order."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges
