"""The invariants of a run: each is a function that reports the violations in the run's history.

The numbers are those of the invariants in docs/queue-protocol.md. An error means that a task was lost or
counted twice, or that a rule that prevents this was broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from fairlead.audit.checkpoints import CheckpointState
from fairlead.audit.history import History
from fairlead.audit.journal import OutcomeLine
from fairlead.audit.snapshot import TrainingSettings
from fairlead.transports.weights.base import is_valid

_SHOWN = 4

LOSSES = ("lost", "missing_checkpoint")
"""Kinds of findings that mean a lost task."""
DOUBLINGS = ("doubled", "trained_and_dead", "would_count_again")
"""Kinds of findings that mean a task that counts twice."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A violation of an invariant, or a warning."""

    kind: str
    """Stable name."""
    words: str
    """Description, with the first few cases."""
    tasks: tuple[int, ...] = ()
    """Affected tasks, in order."""
    is_error: bool = True
    """False for a warning: it costs time, but no task is lost."""


def check(history: History) -> list[Finding]:
    """Return all findings, errors first."""
    found = [finding for one in _CHECKS for finding in one(history)]
    return sorted(found, key=lambda finding: not finding.is_error)


def no_task_counts_twice(history: History) -> Iterator[Finding]:
    """I1: no task counts twice, and none is both trained on and dead-lettered."""
    twice = {task: lines for task, lines in history.counted.items() if len(lines) > 1}
    both = {task: lines for task, lines in twice.items() if len({line.event for line in lines}) > 1}
    doubled = {task: lines for task, lines in twice.items() if task not in both}
    yield from _of_tasks("doubled", {task: _places(lines) for task, lines in doubled.items()})
    yield from _of_tasks("trained_and_dead", {task: _places(lines) for task, lines in both.items()})


def ledgers_match(history: History) -> Iterator[Finding]:
    """I2: every checkpoint of the lineage has exactly the outcomes that the journal has up to it."""
    reported: set[int] = set()
    for state in reversed(history.snapshot.checkpoints):
        if state.version is not None and is_valid(state.version, history.lineage):
            for finding in _ledger_matches(history, state, reported):
                reported.update(finding.tasks)
                yield finding


def _ledger_matches(history: History, state: CheckpointState, reported: set[int]) -> list[Finding]:
    """Check one checkpoint; tasks in `reported` were reported for a newer one."""
    events = {
        task: line.event
        for task, lines in history.counted.items()
        for line in lines
        if line.update < state.update and task not in reported
    }
    settled = state.settled() - reported
    at = f"in checkpoint {state.version}"
    other = {
        task: f"{events[task]} in the journal, {_decision(state, task)} {at}"
        for task in settled & events.keys()
        if events[task] != state.event(task)
    }
    beyond = {task for task in settled if task >= state.cursor}
    return [
        *_of_tasks(
            "lost", dict.fromkeys(settled - events.keys(), f"settled {at}, but has no outcome that counts")
        ),
        *_of_tasks(
            "would_count_again",
            {task: f"{events[task]} in the journal, open {at}" for task in events.keys() - settled},
        ),
        *_of_tasks("ledger_differs", other),
        *_of_tasks("beyond_cursor", dict.fromkeys(beyond, f"settled {at}, whose cursor is {state.cursor}")),
    ]


def all_tasks_settled(history: History) -> Iterator[Finding]:
    """I3: when a run has ended, every task below the cursor is settled in its last checkpoint."""
    if not history.ended:
        return
    newest = history.snapshot.newest
    result = history.snapshot.result or {}
    if newest.update != result.get("updates"):
        unproven = tuple(
            sorted(
                line.task
                for update, lines in history.by_update.items()
                for line in lines
                if update >= newest.update
            )
        )
        words = f"the run ended after update {result.get('updates')}; its newest complete checkpoint: "
        yield Finding("missing_checkpoint", words + str(newest.version or "none"), unproven)
    elif not history.given_up:
        yield from _of_tasks(
            "lost", dict.fromkeys(newest.open_tasks(), f"open in the last checkpoint {newest.version}")
        )
    trained = sum(line.event == "trained" for lines in history.counted.values() for line in lines)
    dead = sum(line.event == "dead_letter" for lines in history.counted.values() for line in lines)
    without = sum(line.event == "no_signal" for lines in history.counted.values() for line in lines)
    for name, number in (("tasks_trained", trained), ("dead_letters", dead), ("tasks_no_signal", without)):
        if name in result and result[name] != number:
            yield Finding(
                "result_differs", f"{name} is {result[name]} in result_ppo.json, but {number} in the journal"
            )


def staleness_within_limit(history: History) -> Iterator[Finding]:
    """I4: every token that was trained on comes from valid weights, at most max_staleness updates old."""
    stale: dict[int, str] = {}
    invalid: dict[int, str] = {}
    for task, lines in history.counted.items():
        for line in lines:
            known = history.settings.get(line.incarnation)
            for version in line.versions:
                if not history.is_valid(version) or version.incarnation > line.incarnation:
                    invalid[task] = f"{_place(line)} on tokens of {version}"
                elif version.update > line.update:
                    stale[task] = f"{_place(line)} on tokens of the later {version}"
                elif known and line.update - version.update > known.max_staleness:
                    stale[task] = (
                        f"{_place(line)} on tokens of {version}, allowed staleness: {known.max_staleness}"
                    )
    yield from _of_tasks("stale", stale)
    yield from _of_tasks("invalid_version", invalid)


def batches_match(history: History) -> Iterator[Finding]:
    """I5: an update uses one whole batch, by one incarnation; a synchronous one exactly the next tasks.

    With dynamic sampling it uses, beside the batch, at most `extra_tasks` outcomes without signal; the last
    task of a synchronous update has a signal, because otherwise the update would have ended before it. The
    settings are those of the incarnation that did the update: a resume may change them.
    """
    newest = max(history.by_update, default=-1)
    start: int | None = 0  # first task of the update; None once that is not known
    for update, lines in sorted(history.by_update.items()):
        if len(writers := {line.incarnation for line in lines}) > 1:
            yield Finding(
                "wrong_batch", f"update {update} was done by incarnations {sorted(writers)}", _tasks(lines)
            )
        known = history.settings.get(min(writers))
        if known is None or known.max_staleness > 0 or (update and update - 1 not in history.by_update):
            start = None
        # The last update may be in progress: its lines are written one after the other.
        if known is None or (update == newest and update >= history.snapshot.newest.update):
            continue
        used = known.tasks_per_update + sum(line.event == "no_signal" for line in lines)
        expected = set() if start is None else set(range(start, start + used))
        yield from _batch_matches(update, lines, known, expected)
        start = None if start is None else start + used
    if missing := set(range(history.snapshot.newest.update)) - history.by_update.keys():
        yield Finding("wrong_batch", f"updates {_some(missing)} have no outcome in the journal")


def _batch_matches(
    update: int, lines: Sequence[OutcomeLine], known: TrainingSettings, expected: set[int]
) -> Iterator[Finding]:
    """Check one update against the tasks that it should have used, if those are known."""
    got = {line.task for line in lines}
    without = [line for line in lines if line.event == "no_signal"]
    batch = len(lines) - len(without)
    if expected and got != expected:
        words = f"update {update} used tasks {_some(got - expected)} instead of {_some(expected - got)}"
        yield Finding("wrong_batch", words, tuple(sorted(got ^ expected)))
    elif batch != known.tasks_per_update:
        words = f"update {update} used {batch} outcomes, but a batch has {known.tasks_per_update}"
        yield Finding("wrong_batch", words, _tasks(lines))
    elif expected and without and max(_tasks(without)) == max(expected):
        words = f"update {update} used task {max(expected)}, which has no signal, after a whole batch"
        yield Finding("wrong_batch", words, (max(expected),))
    if len(without) > known.extra_tasks:
        words = f"update {update} used {len(without)} outcomes without signal, allowed: {known.extra_tasks}"
        yield Finding("wrong_batch", words, _tasks(without))
    if torn := [line for line in lines if line.samples not in (0, known.num_samples)]:
        words = f"update {update} used {torn[0].samples} answers of task {torn[0].task}, but a task has "
        yield Finding("wrong_batch", words + str(known.num_samples), _tasks(torn))


def lineage_matches(history: History) -> Iterator[Finding]:
    """I6: every writer had begun, where it recorded it; checkpoints and weights have the same lineage."""
    resumed_from = {one.incarnation: one.resumed_from for one in history.lineage}
    unknown: dict[int, str] = {}
    early: dict[int, str] = {}
    for line in history.snapshot.outcomes:
        if line.incarnation not in resumed_from:
            unknown[line.task] = f"{_place(line)}, which never began"
        elif line.settles and line.update < resumed_from[line.incarnation]:
            early[line.task] = f"{_place(line)}, which began at update {resumed_from[line.incarnation]}"
    yield from _of_tasks("unknown_incarnation", unknown)
    yield from _of_tasks("before_it_began", early)
    named = [(f"checkpoint {state.version}", state.lineage) for state in history.snapshot.checkpoints]
    named += [(f"weights {one.version}", one.lineage) for one in history.snapshot.weights]
    # A successor may not know an incarnation that was replaced before it produced anything that counts.
    makers = {line.incarnation for lines in history.counted.values() for line in lines}
    for name, lineage in named:
        known = set(lineage)
        expected = [one for one in history.lineage if lineage and one.incarnation <= lineage[-1].incarnation]
        if [one for one in expected if one in known or one.incarnation in makers] != list(lineage):
            yield Finding("lineage_differs", f"{name} and the claimed incarnations have different lineages")
    queue = history.snapshot.queue
    if queue and queue.incarnation > max(history.snapshot.claims.claimed, default=0):
        words = f"incarnation {queue.incarnation} holds the queue's fence, but has no claim in this folder"
        yield Finding("unknown_incarnation", words)


def deleted_only_when_safe(history: History) -> Iterator[Finding]:
    """I7: an outcome is deleted from the queue only when a checkpoint has it, or no resume could use it."""
    lines = {(line.incarnation, line.entry): line for line in history.snapshot.outcomes if line.settles}
    safe = {one.incarnation: one.resumed_from for one in history.lineage}
    early: dict[int, str] = {}
    for event in history.snapshot.events:
        if event.event == "checkpoint":
            safe[event.incarnation] = event.update
        for entry in event.entries:
            line = lines.get((event.incarnation, entry))
            kept = safe.get(event.incarnation, 0)
            if line and line.update >= kept and all(version.update <= kept for version in line.versions):
                early[line.task] = f"outcome {entry} was deleted when the checkpoint was of update {kept}"
    yield from _of_tasks("deleted_early", early)


def sent_before_counted(history: History) -> Iterator[Finding]:
    """I8: every task that counts was sent."""
    if not history.has_events:
        return
    sent: set[int] = set()
    for event in history.snapshot.events:
        for first, last in event.tasks:
            sent.update(range(first, last + 1))
    yield from _of_tasks(
        "never_sent", dict.fromkeys(history.counted.keys() - sent, "counted, but no trainer sent it")
    )


def warnings(history: History) -> Iterator[Finding]:
    """Report faults that lose no task: damaged files, and open tasks that are not in Redis."""
    for damage in history.snapshot.damage:
        yield Finding("damaged", str(damage), is_error=False)
    queue = history.snapshot.queue
    if queue is None or history.ended:
        return
    missing = [
        task
        for task in history.snapshot.newest.open_tasks()
        if task not in history.counted and task not in queue.tasks_present()
    ]
    if missing:
        words = f"open, but not in the queue: {_some(missing)}; the trainer will send them again"
        yield Finding("to_be_resent", words, tuple(missing), is_error=False)


_CHECKS: tuple[Callable[[History], Iterable[Finding]], ...] = (
    no_task_counts_twice,
    ledgers_match,
    all_tasks_settled,
    staleness_within_limit,
    batches_match,
    lineage_matches,
    deleted_only_when_safe,
    sent_before_counted,
    warnings,
)


def _of_tasks(kind: str, cases: dict[int, str]) -> Iterator[Finding]:
    """Yield one finding for all tasks of a kind, none if there are no tasks."""
    if cases:
        tasks = tuple(sorted(cases))
        shown = "; ".join(f"task {task}: {cases[task]}" for task in tasks[:_SHOWN])
        more = f"; and {len(tasks) - _SHOWN} more" if len(tasks) > _SHOWN else ""
        yield Finding(kind, shown + more, tasks)


def _place(line: OutcomeLine) -> str:
    return f"{line.event} in update {line.update} of incarnation {line.incarnation}"


def _places(lines: Iterable[OutcomeLine]) -> str:
    return " and ".join(f"{_place(line)} (line {line.line})" for line in lines)


def _decision(state: CheckpointState, task: int) -> str:
    return {"dead_letter": "dead"}.get(event := state.event(task), event)


def _tasks(lines: Iterable[OutcomeLine]) -> tuple[int, ...]:
    return tuple(sorted({line.task for line in lines}))


def _some(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    if not ordered:
        return "none"
    return ", ".join(map(str, ordered[:_SHOWN])) + (
        f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    )
