"""What must hold of every run, each a function of its history that names what does not.

The numbers are those of the invariants in docs/queue-protocol.md. A finding that is an error means that a
task was lost or counted twice, or that a rule was broken which keeps that from happening.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fairlead.audit.history import History
from fairlead.audit.journal import OutcomeLine
from fairlead.audit.truth import Truth
from fairlead.transports.weights.base import is_valid

_SHOWN = 4

LOSSES = ("lost", "missing_checkpoint")
"""Kinds of findings that mean a loss."""
DOUBLINGS = ("doubled", "trained_and_dead", "would_count_again")
"""Kinds of findings that mean a doubling."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not hold, or is worth knowing."""

    kind: str
    """Stable name."""
    words: str
    """What was found, with the first few cases."""
    tasks: tuple[int, ...] = ()
    """Tasks concerned, in order."""
    is_error: bool = True
    """False for what costs time and loses nothing."""


def check(history: History) -> list[Finding]:
    """Everything that was found, errors first."""
    found = [finding for one in _CHECKS for finding in one(history)]
    return sorted(found, key=lambda finding: not finding.is_error)


def counted_once(history: History) -> Iterator[Finding]:
    """I1: no task counts twice, and none is both trained on and dead."""
    twice = {task: lines for task, lines in history.counted.items() if len(lines) > 1}
    both = {task: lines for task, lines in twice.items() if len({line.event for line in lines}) > 1}
    doubled = {task: lines for task, lines in twice.items() if task not in both}
    yield from _of_tasks("doubled", {task: _places(lines) for task, lines in doubled.items()})
    yield from _of_tasks("trained_and_dead", {task: _places(lines) for task, lines in both.items()})


def ledgers_agree(history: History) -> Iterator[Finding]:
    """I2: a checkpoint of the lineage says what the journal says up to it: none lost, none forgotten."""
    told: set[int] = set()
    for truth in reversed(history.snapshot.checkpoints):
        if truth.version is not None and is_valid(truth.version, history.lineage):
            for finding in _ledger_agrees(history, truth, told):
                told.update(finding.tasks)
                yield finding


def _ledger_agrees(history: History, truth: Truth, told: set[int]) -> list[Finding]:
    """One checkpoint; `told` are tasks of which a newer one has spoken."""
    events = {
        task: line.event
        for task, lines in history.counted.items()
        for line in lines
        if line.update < truth.update and task not in told
    }
    settled, at = truth.settled() - told, f"in checkpoint {truth.version}"
    other = {
        task: f"{events[task]} in the journal, {_state(truth, task)} {at}"
        for task in settled & events.keys()
        if (events[task] == "dead_letter") != (task in truth.dead)
    }
    beyond = {task for task in settled if task >= truth.cursor}
    return [
        *_of_tasks("lost", dict.fromkeys(settled - events.keys(), f"settled {at}, without an outcome")),
        *_of_tasks(
            "would_count_again",
            {task: f"{events[task]} in the journal, open {at}" for task in events.keys() - settled},
        ),
        *_of_tasks("ledger_differs", other),
        *_of_tasks("beyond_cursor", dict.fromkeys(beyond, f"settled {at}, whose cursor is {truth.cursor}")),
    ]


def all_done(history: History) -> Iterator[Finding]:
    """I3: when a run has ended, every task below the cursor is settled in its last checkpoint."""
    if not history.ended:
        return
    truth, result = history.snapshot.truth, history.snapshot.result or {}
    if truth.update != result.get("updates"):
        unproven = tuple(
            sorted(
                line.task
                for update, lines in history.by_update.items()
                for line in lines
                if update >= truth.update
            )
        )
        words = f"the run ended after update {result.get('updates')}, its newest whole checkpoint is "
        yield Finding("missing_checkpoint", words + str(truth.version or "none"), unproven)
    elif not history.given_up:
        open_tasks = truth.open_tasks()
        yield from _of_tasks(
            "lost", dict.fromkeys(open_tasks, f"open in the last checkpoint {truth.version}")
        )
    trained = sum(line.event == "trained" for lines in history.counted.values() for line in lines)
    dead = sum(line.event == "dead_letter" for lines in history.counted.values() for line in lines)
    for name, number in (("tasks_trained", trained), ("dead_letters", dead)):
        if name in result and result[name] != number:
            yield Finding(
                "result_differs", f"result_ppo.json says {name} {result[name]}, the journal {number}"
            )


def fresh(history: History) -> Iterator[Finding]:
    """I4: every token that was trained on is of valid weights, and none is older than max_staleness."""
    stale, invalid = {}, {}
    for task, lines in history.counted.items():
        for line in lines:
            known = history.terms.get(line.incarnation)
            for version in line.versions:
                if not history.is_valid(version) or version.incarnation > line.incarnation:
                    invalid[task] = f"{_place(line)} on tokens of {version}"
                elif version.update > line.update:
                    stale[task] = f"{_place(line)} on tokens of the later {version}"
                elif known and line.update - version.update > known.max_staleness:
                    stale[task] = (
                        f"{_place(line)} on tokens of {version}, at most {known.max_staleness} older"
                    )
    yield from _of_tasks("stale", stale)
    yield from _of_tasks("invalid_version", invalid)


def batches_are_right(history: History) -> Iterator[Finding]:
    """I5: an update takes a whole batch, by one incarnation; a synchronous one exactly its own tasks."""
    newest = max(history.by_update, default=-1)
    for update, lines in sorted(history.by_update.items()):
        if len(writers := {line.incarnation for line in lines}) > 1:
            yield Finding(
                "wrong_batch", f"update {update} was made by incarnations {sorted(writers)}", _tasks(lines)
            )
        known = history.terms.get(min(writers))
        # The last one may be under way: its lines are written one behind the other.
        if known is None or (update == newest and update >= history.snapshot.truth.update):
            continue
        got = {line.task for line in lines}
        expected = set(range(update * known.batch_size, (update + 1) * known.batch_size))
        if known.max_staleness == 0 and got != expected:
            words = f"update {update} took {_some(got - expected)} and not {_some(expected - got)}"
            yield Finding("wrong_batch", words, tuple(sorted(got ^ expected)))
        elif len(lines) != known.batch_size:
            words = f"update {update} took {len(lines)} outcomes, a batch has {known.batch_size}"
            yield Finding("wrong_batch", words, _tasks(lines))
    if missing := set(range(history.snapshot.truth.update)) - history.by_update.keys():
        yield Finding("wrong_batch", f"updates {_some(missing)} left no outcome in the journal")


def lineage_holds(history: History) -> Iterator[Finding]:
    """I6: who wrote had taken up, and where it says; checkpoints and weights know the same lineage."""
    taken_up = {one.incarnation: one.resumed_from for one in history.lineage}
    strangers, early = {}, {}
    for line in history.snapshot.outcomes:
        if line.incarnation not in taken_up:
            strangers[line.task] = f"{_place(line)}, which never took up"
        elif line.settles and line.update < taken_up[line.incarnation]:
            early[line.task] = f"{_place(line)}, which took up at update {taken_up[line.incarnation]}"
    yield from _of_tasks("unknown_incarnation", strangers)
    yield from _of_tasks("before_it_began", early)
    named = [(f"checkpoint {truth.version}", truth.lineage) for truth in history.snapshot.checkpoints]
    named += [(f"weights {one.version}", one.lineage) for one in history.snapshot.weights]
    # One that was overtaken before it made anything that counts may be unknown to the one that overtook it.
    makers = {line.incarnation for lines in history.counted.values() for line in lines}
    for name, lineage in named:
        known = set(lineage)
        expected = [one for one in history.lineage if lineage and one.incarnation <= lineage[-1].incarnation]
        if [one for one in expected if one in known or one.incarnation in makers] != list(lineage):
            yield Finding("lineage_differs", f"{name} has another lineage than the claims of incarnations")
    queue = history.snapshot.queue
    if queue and queue.incarnation > max(history.snapshot.claims.claimed, default=0):
        words = f"incarnation {queue.incarnation} holds the queue's fence and has no claim in this folder"
        yield Finding("unknown_incarnation", words)


def kept_until_safe(history: History) -> Iterator[Finding]:
    """I7: an outcome leaves the queue when a checkpoint holds it, or when no resume could use it."""
    lines = {(line.incarnation, line.entry): line for line in history.snapshot.outcomes if line.settles}
    safe = {one.incarnation: one.resumed_from for one in history.lineage}
    early = {}
    for event in history.snapshot.events:
        if event.event == "checkpoint":
            safe[event.incarnation] = event.update
        for entry in event.entries:
            line = lines.get((event.incarnation, entry))
            kept = safe.get(event.incarnation, 0)
            if line and line.update >= kept and all(version.update <= kept for version in line.versions):
                early[line.task] = f"outcome {entry} was deleted, the checkpoint was of update {kept}"
    yield from _of_tasks("deleted_early", early)


def sent_before(history: History) -> Iterator[Finding]:
    """I8: what counts was sent."""
    if not history.has_events:
        return
    sent: set[int] = set()
    for event in history.snapshot.events:
        for first, last in event.tasks:
            sent.update(range(first, last + 1))
    yield from _of_tasks(
        "never_sent", dict.fromkeys(history.counted.keys() - sent, "counted, and no trainer sent it")
    )


def under_way(history: History) -> Iterator[Finding]:
    """What is worth knowing and loses nothing: damage, and open tasks that Redis does not hold."""
    for damage in history.snapshot.damage:
        yield Finding("damaged", str(damage), is_error=False)
    queue, truth = history.snapshot.queue, history.snapshot.truth
    if queue is None or history.ended:
        return
    missing = [
        task
        for task in truth.open_tasks()
        if task not in history.counted and task not in queue.tasks_present()
    ]
    if missing:
        words = f"open, and not in the queue: {_some(missing)}; the trainer sends them again"
        yield Finding("to_be_resent", words, tuple(missing), is_error=False)


_CHECKS: tuple[Callable[[History], Iterable[Finding]], ...] = (
    counted_once,
    ledgers_agree,
    all_done,
    fresh,
    batches_are_right,
    lineage_holds,
    kept_until_safe,
    sent_before,
    under_way,
)


def _of_tasks(kind: str, cases: dict[int, str]) -> Iterator[Finding]:
    """One finding for all tasks of a kind; none if there are none."""
    if cases:
        tasks = tuple(sorted(cases))
        shown = "; ".join(f"task {task}: {cases[task]}" for task in tasks[:_SHOWN])
        more = f"; and {len(tasks) - _SHOWN} more" if len(tasks) > _SHOWN else ""
        yield Finding(kind, shown + more, tasks)


def _place(line: OutcomeLine) -> str:
    return f"{line.event} in update {line.update} of incarnation {line.incarnation}"


def _places(lines: Iterable[OutcomeLine]) -> str:
    return " and ".join(f"{_place(line)} (line {line.line})" for line in lines)


def _state(truth: Truth, task: int) -> str:
    return "dead" if task in truth.dead else "trained"


def _tasks(lines: Iterable[OutcomeLine]) -> tuple[int, ...]:
    return tuple(sorted({line.task for line in lines}))


def _some(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    if not ordered:
        return "nothing else"
    return ", ".join(map(str, ordered[:_SHOWN])) + (
        f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    )
