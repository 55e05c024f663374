"""The history of every task, built from a snapshot: which outcomes count, which are void, what was sent when.

An outcome counts if the weights that were trained on it belong to the lineage of the final weights. Decides
nothing about correctness: the rules are in `invariants`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from fairlead.audit.journal import EventLine, OutcomeLine
from fairlead.audit.snapshot import RunSnapshot, TrainingSettings
from fairlead.transports.rollouts.redis_connection import RETURNED
from fairlead.transports.weights.base import Ancestor, is_valid
from fairlead.types import WeightVersion


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """Something that happened to a task, or its current state."""

    time: float
    """Unix time; 0 for the current state."""
    text: str
    """Description."""


class History:
    """The histories of all tasks of a run."""

    def __init__(self, snapshot: RunSnapshot) -> None:
        self.snapshot = snapshot
        self._valid: dict[WeightVersion, bool] = {}
        self.counted: dict[int, list[OutcomeLine]] = defaultdict(list)
        """Task → outcomes that settle it in the final lineage."""
        self.void: list[OutcomeLine] = []
        """Outcomes that settled their task only in an abandoned lineage."""
        self.discarded: list[OutcomeLine] = []
        """Outcomes that a trainer discarded."""
        for line in snapshot.outcomes:
            if not line.settles:
                self.discarded.append(line)
            elif self.is_valid(line.produced):
                self.counted[line.task].append(line)
            else:
                self.void.append(line)

    @property
    def lineage(self) -> tuple[Ancestor, ...]:
        """The incarnations that began to train."""
        return self.snapshot.claims.lineage

    def is_valid(self, version: WeightVersion) -> bool:
        """Return whether weights belong to the lineage."""
        if version not in self._valid:
            self._valid[version] = is_valid(version, self.lineage)
        return self._valid[version]

    @cached_property
    def by_update(self) -> dict[int, list[OutcomeLine]]:
        """Update → outcomes that count in it."""
        found: dict[int, list[OutcomeLine]] = defaultdict(list)
        for lines in self.counted.values():
            for line in lines:
                found[line.update].append(line)
        return found

    @cached_property
    def settings(self) -> dict[int, TrainingSettings]:
        """Incarnation → its settings, where they are known."""
        configured = self.snapshot.settings
        found = {one.incarnation: configured for one in self.lineage} if configured else {}
        for event in self.snapshot.events:
            if event.event == "begun" and event.settings:
                found[event.incarnation] = TrainingSettings(
                    int(event.settings["batch_size"]),
                    int(event.settings["max_staleness"]),
                    int(event.settings.get("num_samples", 1)),
                    int(event.settings.get("extra_tasks", 0)),
                )
        return found

    @cached_property
    def has_events(self) -> bool:
        """Whether every incarnation recorded its actions on the queue."""
        begun = {event.incarnation for event in self.snapshot.events if event.event == "begun"}
        return bool(self.lineage) and all(one.incarnation in begun for one in self.lineage)

    @property
    def ended(self) -> bool:
        """Whether PPO has ended and its result belongs to this lineage."""
        result = self.snapshot.result
        return result is not None and result.get("incarnations") == len(self.lineage)

    @property
    def given_up(self) -> bool:
        """Whether a guard ended the run, so that its open tasks stay open."""
        return self.ended and "stopped_by_guard" in (self.snapshot.result or {})

    @cached_property
    def cursor(self) -> int:
        """All known sent tasks have IDs below it.

        Of a run that has ended, only those in its last checkpoint: with dynamic sampling, an incarnation that
        was killed may have sent tasks that its successor did not need.
        """
        if self.ended and not self.given_up:
            return max([self.snapshot.newest.cursor, *(task + 1 for task in self.counted)])
        sent = (last + 1 for event in self._sendings() for _, last in event.tasks)
        return max([self.snapshot.newest.cursor, *sent, *(task + 1 for task in self.counted)])

    def open_tasks(self) -> list[int]:
        """Return the tasks that were sent and are not settled by an outcome that counts."""
        return [task for task in range(self.cursor) if task not in self.counted]

    @cached_property
    def resent(self) -> int:
        """Number of sendings of tasks after their first one."""
        sent = [
            task
            for event in self.snapshot.events
            for one in event.tasks
            for task in range(one[0], one[1] + 1)
        ]
        return len(sent) - len(set(sent))

    def of_task(self, task: int) -> list[TaskEvent]:
        """Return the events of one task, in order; its current state comes last."""
        events = [
            TaskEvent(event.time, f"sent by incarnation {event.incarnation} after update {event.update}")
            for event in self.snapshot.events
            if any(first <= task <= last for first, last in event.tasks)
        ]
        lines = [line for line in self.snapshot.outcomes if line.task == task]
        deleted = self._deletions({(line.incarnation, line.entry) for line in lines})
        for line in lines:
            events.append(TaskEvent(_finished_at(line), f"finished by {_finisher(line)}"))
            events.append(TaskEvent(line.time, self._decision(line)))
            events += self._saved(line)
            if (line.incarnation, line.entry) in deleted:
                event = deleted[line.incarnation, line.entry]
                events.append(TaskEvent(event.time, f"outcome {line.entry} deleted from the queue"))
        events.sort(key=lambda event: event.time)
        return events + [TaskEvent(0.0, text) for text in self._now(task)]

    def _sendings(self) -> Iterator[EventLine]:
        for event in self.snapshot.events:
            # Sendings after the update that the next incarnation resumed from were repeated or not needed.
            if event.event == "sent" and self.is_valid(WeightVersion(event.incarnation, event.update)):
                yield event

    def _decision(self, line: OutcomeLine) -> str:
        where = f"update {line.update} of incarnation {line.incarnation}"
        if not line.settles:
            return f"discarded as {line.event} at {where}"
        void = "" if self.is_valid(line.produced) else "; void: this lineage was abandoned"
        return f"{_settled_as(line.event, line.reason)} in {where}{void}"

    def _saved(self, line: OutcomeLine) -> list[TaskEvent]:
        """Return the first checkpoint of the line's incarnation that contains its outcome."""
        if not line.settles:
            return []
        saved = [
            event
            for event in self.snapshot.events
            if event.event == "checkpoint" and event.incarnation == line.incarnation
        ]
        at = bisect_right([event.update for event in saved], line.update)
        if at == len(saved):
            return []
        return [TaskEvent(saved[at].time, f"saved in checkpoint {line.incarnation}-{saved[at].update}")]

    def _deletions(self, wanted: set[tuple[int, str]]) -> dict[tuple[int, str], EventLine]:
        return {
            (event.incarnation, entry): event
            for event in self.snapshot.events
            if event.event == "deleted"
            for entry in event.entries
            if (event.incarnation, entry) in wanted
        }

    def _now(self, task: int) -> Iterator[str]:
        queue = self.snapshot.queue
        for prompt in queue.prompts if queue else ():
            if prompt.task == task:
                closed = "" if prompt.is_open else ", closed"
                sending = f"sending {prompt.sending.incarnation}.{prompt.sending.number}{closed}"
                failures = queue.failures.get(task, 0) if queue and prompt.is_open else 0
                if prompt.worker == RETURNED:
                    past = _past_deliveries(prompt.deliveries + 1, failures)
                    yield f"now: {sending}, given back, waiting for a worker{past}"
                elif prompt.worker:
                    past = _past_deliveries(prompt.deliveries, failures)
                    yield f"now: {sending}, delivery {prompt.deliveries}, held by {prompt.worker}{past}"
                elif prompt.is_new:
                    yield f"now: {sending}, waiting for a worker"
        for outcome in queue.outcomes if queue else ():
            if outcome.task == task:
                yield f"now: outcome {outcome.entry} is in the queue"
        newest = self.snapshot.newest
        if newest.is_settled(task):
            state = _settled_as(newest.event(task), newest.dead.get(task, ""))
            yield f"now: {state} in checkpoint {newest.version}"
        elif task in self.counted:
            yield "now: counted, waiting for a checkpoint"
        else:
            yield "now: open" if task < self.cursor else "now: not sent yet"


def _settled_as(event: str, reason: str) -> str:
    return {"dead_letter": f"dead ({reason})", "no_signal": "without signal"}.get(event, event)


def _finisher(line: OutcomeLine) -> str:
    sending = f"{line.worker}: sending {line.sending[0]}.{line.sending[1]}, delivery {line.deliveries}"
    weights = f", weights {', '.join(map(str, line.versions))}" if line.versions else ""
    return sending + _past_deliveries(line.deliveries, line.failures) + weights


def _past_deliveries(delivery: int, failures: int) -> str:
    """Describe how the deliveries before this one ended; the workers that held them are not recorded."""
    failed = f", {failures} failed before" if failures else ""
    expired = delivery - 1 - failures
    return failed + (f", {expired} expired before" if expired > 0 else "")


def _finished_at(line: OutcomeLine) -> float:
    """Return when an outcome was added to Redis: entry IDs start with the Unix time in milliseconds."""
    milliseconds, dash, _ = line.entry.partition("-")
    return int(milliseconds) / 1000 if dash and milliseconds.isdigit() else line.time
