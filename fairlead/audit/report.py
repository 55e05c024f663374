"""The whole audit of a run, and its report: figures, incarnations, findings.

Prints nothing: `fairlead audit` shows the report.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fairlead.audit.history import History
from fairlead.audit.invariants import DOUBLINGS, LOSSES, Finding, check
from fairlead.audit.snapshot import TrainingSettings, read_run
from fairlead.config import RunFolder
from fairlead.transports.rollouts.base import QueueSnapshot

_READINGS = 5
_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class IncarnationSummary:
    """The figures of one incarnation of the trainer."""

    number: int
    """The incarnation."""
    resumed_from: int | None
    """Update that it resumed from; None if it never began to train."""
    trained: int
    """Tasks that it trained on and that count."""
    dead: int
    """Its dead letters that count."""
    void: int
    """Its outcomes that do not count because a later incarnation resumed from before them."""
    discarded: int
    """Outcomes that it discarded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of an audit."""

    run: str
    """Folder of the run."""
    ended: bool
    """Whether PPO has ended."""
    updates: int
    """Updates in the newest complete checkpoint."""
    checkpoint: str
    """The newest complete checkpoint; empty if there is none."""
    tasks: int
    """Tasks that were sent in the lineage."""
    trained: int
    """Tasks that were trained on."""
    dead: int
    """Tasks that were dead-lettered."""
    no_signal: int
    """Tasks whose answers had no signal, so that further tasks took their place."""
    open: int
    """Tasks that are none of these yet."""
    given_up: bool
    """Whether a guard ended the run, so that the open tasks stay open."""
    resent: int
    """Sendings of tasks after their first one."""
    void: int
    """Outcomes of abandoned lineages."""
    discarded: dict[str, int]
    """Outcomes that the trainers discarded, by reason."""
    deliveries: int
    """Deliveries of the outcomes that count: one per task if no lease ever expired."""
    dead_reasons: dict[str, int]
    """Dead letters that count, by reason."""
    max_staleness_seen: int
    """Largest staleness of a token that was trained on, in updates."""
    incarnations: tuple[IncarnationSummary, ...]
    """Every incarnation that claimed a number."""
    queue: dict[str, int] | None
    """Content of Redis: waiting, in_flight, outcomes, outcome_bytes; None if it was not read."""
    queue_error: str
    """Why Redis was not read."""
    lost: tuple[int, ...]
    """Tasks that are lost."""
    duplicated: tuple[int, ...]
    """Tasks that count twice."""
    findings: tuple[Finding, ...]
    """Everything that was found, errors first."""

    @property
    def is_clean(self) -> bool:
        """Whether every invariant holds."""
        return not any(finding.is_error for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        """Return the report as a JSON-serialisable dictionary."""
        return {"clean": self.is_clean, **asdict(self)}


def audit(
    folder: RunFolder,
    *,
    weights: Path | None = None,
    settings: TrainingSettings | None = None,
    read_queue: Callable[[], QueueSnapshot] | None = None,
    tensors: bool = True,
) -> tuple[Report, History]:
    """Audit a run; the arguments are those of `snapshot.read_run`. Return the report and the history.

    Journals are only appended to, so what is wrong in a run stays wrong: an error counts if the next reading
    has it as well. So no step of an active run that falls between two reads can look like one.
    """
    earlier: set[tuple[str, tuple[int, ...]]] = set()
    for _ in range(_READINGS):
        history = History(
            read_run(folder, weights=weights, settings=settings, read_queue=read_queue, tensors=tensors)
        )
        findings = check(history)
        errors = {(finding.kind, finding.tasks) for finding in findings if finding.is_error}
        if errors <= earlier:
            break
        earlier = errors
        time.sleep(_PAUSE_SECONDS)
    return summarise(folder, history, findings), history


def summarise(folder: RunFolder, history: History, findings: list[Finding]) -> Report:
    """Return the report of a history and its findings."""
    counted = [line for lines in history.counted.values() for line in lines]
    newest = history.snapshot.newest
    first = {task: lines[0].event for task, lines in history.counted.items()}
    events = Counter(first.values())
    return Report(
        run=str(folder.root),
        ended=history.ended,
        updates=newest.update,
        checkpoint=str(newest.version or ""),
        tasks=history.cursor,
        trained=events["trained"],
        dead=events["dead_letter"],
        no_signal=events["no_signal"],
        open=history.cursor - len(first),
        given_up=history.given_up,
        resent=history.resent,
        void=len(history.void),
        discarded=dict(Counter(line.event for line in history.discarded)),
        deliveries=sum(line.deliveries for line in counted),
        dead_reasons=dict(Counter(line.reason for line in counted if line.event == "dead_letter")),
        max_staleness_seen=max(
            (line.update - version.update for line in counted for version in line.versions), default=0
        ),
        incarnations=_incarnations(history),
        queue=_queue(history.snapshot.queue),
        queue_error=history.snapshot.queue_error,
        lost=_tasks(findings, LOSSES),
        duplicated=_tasks(findings, DOUBLINGS),
        findings=tuple(findings),
    )


def _incarnations(history: History) -> tuple[IncarnationSummary, ...]:
    events = Counter((line.incarnation, line.event) for lines in history.counted.values() for line in lines)
    void = Counter(line.incarnation for line in history.void)
    discarded = Counter(line.incarnation for line in history.discarded)
    resumed_from = {one.incarnation: one.resumed_from for one in history.lineage}
    return tuple(
        IncarnationSummary(
            number=number,
            resumed_from=resumed_from.get(number),
            trained=events[number, "trained"],
            dead=events[number, "dead_letter"],
            void=void[number],
            discarded=discarded[number],
        )
        for number in history.snapshot.claims.claimed
    )


def _queue(queue: QueueSnapshot | None) -> dict[str, int] | None:
    if queue is None:
        return None
    return {
        "waiting": sum(prompt.is_open and prompt.is_new for prompt in queue.prompts),
        "in_flight": sum(prompt.is_open and bool(prompt.worker) for prompt in queue.prompts),
        "outcomes": len(queue.outcomes),
        "outcome_bytes": sum(outcome.size_bytes for outcome in queue.outcomes),
    }


def _tasks(findings: list[Finding], kinds: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(sorted({task for finding in findings if finding.kind in kinds for task in finding.tasks}))
