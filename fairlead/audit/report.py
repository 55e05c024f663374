"""An audit from beginning to end, and what it says: figures, incarnations, findings.

Knows no terminal; `fairlead audit` shows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fairlead.audit.history import History
from fairlead.audit.invariants import DOUBLINGS, LOSSES, Finding, check
from fairlead.audit.snapshot import Terms, take
from fairlead.config import RunFolder
from fairlead.transports.rollouts.base import QueueSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Incarnation:
    """One trainer, and what became of what it did."""

    number: int
    """The incarnation."""
    resumed_from: int | None
    """Where it took up; None if it never did."""
    trained: int
    """Tasks trained on that count."""
    dead: int
    """Dead letters that count."""
    void: int
    """Outcomes that a later incarnation gave up."""
    discarded: int
    """Outcomes that it did not let count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an audit found."""

    run: str
    """The run's folder."""
    ended: bool
    """Whether PPO has ended."""
    updates: int
    """Updates in the newest whole checkpoint."""
    checkpoint: str
    """That checkpoint; empty if there is none."""
    tasks: int
    """Tasks that were sent in the lineage."""
    trained: int
    """Of these, trained on."""
    dead: int
    """Of these, dead."""
    open: int
    """Of these, neither yet."""
    given_up: bool
    """Whether a guard ended the run, and the open ones with it."""
    resent: int
    """Sendings after the first."""
    void: int
    """Outcomes of lineages that were given up."""
    discarded: dict[str, int]
    """Outcomes that did not count, by reason."""
    deliveries: int
    """Deliveries of what counted: as many as counted tasks if no lease ever ran out."""
    dead_reasons: dict[str, int]
    """Dead letters that count, by reason."""
    max_staleness_seen: int
    """Largest number of updates that a trained token lagged behind."""
    incarnations: tuple[Incarnation, ...]
    """Every trainer that claimed a number."""
    queue: dict[str, int] | None
    """What Redis holds: waiting, in_flight, outcomes, bytes; None if it was not looked at."""
    queue_error: str
    """Why it was not."""
    lost: tuple[int, ...]
    """Tasks that are lost."""
    duplicated: tuple[int, ...]
    """Tasks that count twice."""
    findings: tuple[Finding, ...]
    """Everything that was found, errors first."""

    @property
    def is_clean(self) -> bool:
        """Whether every rule holds."""
        return not any(finding.is_error for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        """The report for programs."""
        return {"clean": self.is_clean, **asdict(self)}


def audit(
    folder: RunFolder,
    *,
    weights: Path | None = None,
    terms: Terms | None = None,
    look: Callable[[], QueueSnapshot] | None = None,
    tensors: bool = True,
) -> tuple[Report, History]:
    """Audits a run; the arguments are those of `snapshot.take`. Returns what was found, and every life."""
    history = History(take(folder, weights=weights, terms=terms, look=look, tensors=tensors))
    return summarise(folder, history, check(history)), history


def summarise(folder: RunFolder, history: History, findings: list[Finding]) -> Report:
    """The figures of a history."""
    counted = [line for lines in history.counted.values() for line in lines]
    truth, queue = history.snapshot.truth, history.snapshot.queue
    first = {task: lines[0].event for task, lines in history.counted.items()}
    trained = sum(event == "trained" for event in first.values())
    return Report(
        run=str(folder.root),
        ended=history.ended,
        updates=truth.update,
        checkpoint=str(truth.version or ""),
        tasks=history.cursor,
        trained=trained,
        dead=len(first) - trained,
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
        queue=_queue(queue),
        queue_error=history.snapshot.queue_error,
        lost=_tasks(findings, LOSSES),
        duplicated=_tasks(findings, DOUBLINGS),
        findings=tuple(findings),
    )


def _incarnations(history: History) -> tuple[Incarnation, ...]:
    events = Counter((line.incarnation, line.event) for lines in history.counted.values() for line in lines)
    void = Counter(line.incarnation for line in history.void)
    discarded = Counter(line.incarnation for line in history.discarded)
    taken_up = {one.incarnation: one.resumed_from for one in history.lineage}
    return tuple(
        Incarnation(
            number=number,
            resumed_from=taken_up.get(number),
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
