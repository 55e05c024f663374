"""Every task's life, put together from a snapshot: which outcomes count, which were void, what was sent when.

An outcome counts if the weights that it helped to make belong to the lineage of the final ones. Judges
nothing: what must hold stands in `invariants`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from fairlead.audit.journal import EventLine, OutcomeLine
from fairlead.audit.snapshot import Snapshot, Terms
from fairlead.transports.rollouts.redis_connection import RETURNED
from fairlead.transports.weights.base import Ancestor, is_valid
from fairlead.types import WeightVersion


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened to a task."""

    time: float
    """Unix time; 0 for what holds now."""
    words: str
    """What happened."""


class History:
    """Lives of all tasks of a run."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._valid: dict[WeightVersion, bool] = {}
        self.counted: dict[int, list[OutcomeLine]] = defaultdict(list)
        """Task → outcomes that settle it in the lineage."""
        self.void: list[OutcomeLine] = []
        """Outcomes that counted in lineages which were given up."""
        self.discarded: list[OutcomeLine] = []
        """Outcomes that no trainer let count."""
        for line in snapshot.outcomes:
            if not line.settles:
                self.discarded.append(line)
            elif self.is_valid(line.made):
                self.counted[line.task].append(line)
            else:
                self.void.append(line)

    @property
    def lineage(self) -> tuple[Ancestor, ...]:
        """Incarnations that took up."""
        return self.snapshot.claims.lineage

    def is_valid(self, version: WeightVersion) -> bool:
        """Whether weights belong to the lineage."""
        if version not in self._valid:
            self._valid[version] = is_valid(version, self.lineage)
        return self._valid[version]

    @cached_property
    def by_update(self) -> dict[int, list[OutcomeLine]]:
        """Update → outcomes that counted in it."""
        found: dict[int, list[OutcomeLine]] = defaultdict(list)
        for lines in self.counted.values():
            for line in lines:
                found[line.update].append(line)
        return found

    @cached_property
    def terms(self) -> dict[int, Terms]:
        """Incarnation → what it had agreed to, as far as that is known."""
        configured = self.snapshot.terms
        found = {one.incarnation: configured for one in self.lineage} if configured else {}
        for event in self.snapshot.events:
            if event.event == "begun" and event.terms:
                terms = Terms(int(event.terms["batch_size"]), int(event.terms["max_staleness"]))
                found[event.incarnation] = terms
        return found

    @cached_property
    def has_events(self) -> bool:
        """Whether every incarnation wrote its deeds down."""
        begun = {event.incarnation for event in self.snapshot.events if event.event == "begun"}
        return bool(self.lineage) and all(one.incarnation in begun for one in self.lineage)

    @property
    def ended(self) -> bool:
        """Whether PPO has ended, and its figures are those of this lineage."""
        result = self.snapshot.result
        return result is not None and result.get("incarnations") == len(self.lineage)

    @property
    def given_up(self) -> bool:
        """Whether a guard ended the run, and what was under way with it."""
        return self.ended and "stopped_by_guard" in (self.snapshot.result or {})

    @cached_property
    def cursor(self) -> int:
        """Tasks below it were sent, as far as is known."""
        sent = (last + 1 for event in self._sendings() for _, last in event.tasks)
        return max([self.snapshot.truth.cursor, *sent, *(task + 1 for task in self.counted)])

    def open_tasks(self) -> list[int]:
        """Tasks that were sent and did not count yet."""
        return [task for task in range(self.cursor) if task not in self.counted]

    @cached_property
    def resent(self) -> int:
        """Sendings after a task's first."""
        sent = [
            task
            for event in self.snapshot.events
            for one in event.tasks
            for task in range(one[0], one[1] + 1)
        ]
        return len(sent) - len(set(sent))

    def life(self, task: int) -> list[Moment]:
        """What is known of one task, in order; what holds now comes last."""
        moments = [
            Moment(event.time, f"sent by incarnation {event.incarnation} after update {event.update}")
            for event in self.snapshot.events
            if any(first <= task <= last for first, last in event.tasks)
        ]
        lines = [line for line in self.snapshot.outcomes if line.task == task]
        deleted = self._deletions({(line.incarnation, line.entry) for line in lines})
        for line in lines:
            moments.append(Moment(_finished_at(line), f"finished by {_hands(line)}"))
            moments.append(Moment(line.time, self._words(line)))
            moments += self._kept(line)
            if (line.incarnation, line.entry) in deleted:
                event = deleted[line.incarnation, line.entry]
                moments.append(Moment(event.time, f"outcome {line.entry} acknowledged: it left the queue"))
        moments.sort(key=lambda moment: moment.time)
        return moments + [Moment(0.0, words) for words in self._now(task)]

    def _sendings(self) -> Iterator[EventLine]:
        for event in self.snapshot.events:
            # What an incarnation sent behind where the next one took up was sent again, or never needed.
            if event.event == "sent" and self.is_valid(WeightVersion(event.incarnation, event.update)):
                yield event

    def _words(self, line: OutcomeLine) -> str:
        where = f"update {line.update} of incarnation {line.incarnation}"
        if not line.settles:
            return f"dropped as {line.event} at {where}"
        void = "" if self.is_valid(line.made) else "; void, this lineage was given up"
        return f"{'trained' if line.event == 'trained' else f'dead ({line.reason})'} in {where}{void}"

    def _kept(self, line: OutcomeLine) -> list[Moment]:
        """The checkpoint of its incarnation that first held it."""
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
        return [Moment(saved[at].time, f"kept by checkpoint {line.incarnation}-{saved[at].update}")]

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
                name = f"sending {prompt.sending.incarnation}.{prompt.sending.number}{closed}"
                failures = queue.failures.get(task, 0) if queue and prompt.is_open else 0
                if prompt.worker == RETURNED:
                    past = _past(prompt.deliveries + 1, failures)
                    yield f"now: {name}, given back, waits for a worker{past}"
                elif prompt.worker:
                    past = _past(prompt.deliveries, failures)
                    yield f"now: {name}, delivery {prompt.deliveries}, held by {prompt.worker}{past}"
                elif prompt.is_new:
                    yield f"now: {name}, waits for a worker"
        for outcome in queue.outcomes if queue else ():
            if outcome.task == task:
                yield f"now: outcome {outcome.entry} lies in the queue"
        truth = self.snapshot.truth
        if truth.is_settled(task):
            state = f"dead ({truth.dead[task]})" if task in truth.dead else "trained"
            yield f"now: {state} in checkpoint {truth.version}"
        elif task in self.counted:
            yield "now: counted, and waits for a checkpoint"
        else:
            yield "now: open" if task < self.cursor else "now: not sent yet"


def _hands(line: OutcomeLine) -> str:
    """Through whose hands an outcome went."""
    sending = f"{line.worker}: sending {line.sending[0]}.{line.sending[1]}, delivery {line.deliveries}"
    made = f", weights {', '.join(map(str, line.versions))}" if line.versions else ""
    return sending + _past(line.deliveries, line.failures) + made


def _past(delivery: int, failures: int) -> str:
    """How the deliveries before this one ended; who had them is not written down."""
    failed = f", failed {failures} times before" if failures else ""
    lapsed = delivery - 1 - failures
    return failed + (f", left {lapsed} times without a word" if lapsed > 0 else "")


def _finished_at(line: OutcomeLine) -> float:
    """Entries of Redis are named by their time in milliseconds."""
    milliseconds, dash, _ = line.entry.partition("-")
    return int(milliseconds) / 1000 if dash and milliseconds.isdigit() else line.time
