"""Handmade folders of runs, into which every fault can be injected: the oracle of the audit.

The files are written as documented, without the trainer's code; the expected findings are known because the
faults were injected.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.audit import audit
from fairlead.config import RunFolder

BATCH = 4


@dataclass
class MadeRun:
    """A run under construction. `dead`: tasks whose outcome is a dead letter."""

    root: Path
    max_staleness: int = 0
    dead: frozenset[int] = frozenset()
    batch: int = BATCH
    samples: int = 1
    settled: dict[int, int] = field(default_factory=lambda: {0: 0})
    """Number of settled tasks after each update."""
    lineage: list[list[int]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    clock: float = 1000.0

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.root)

    def incarnation(self, number: int, *, resumed_from: int, until: int, every: int = 2) -> None:
        """Train from one update to another, with complete checkpoints."""
        self.claim(number, resumed_from)
        terms = {"batch_size": self.batch, "max_staleness": self.max_staleness, "updates": 100}
        if self.samples > 1:  # versions without groups do not record it
            terms |= {"batch_size": self.batch * self.samples, "num_samples": self.samples}
        self.event("begun", number, resumed_from, terms=terms)
        kept, waiting = resumed_from, []
        for update in range(resumed_from, until):
            first = self.settled[update]
            self.settled[update + 1] = first + self.batch
            self.event("sent", number, update, tasks=[[first, first + self.batch - 1]])
            for task in range(first, first + self.batch):
                self.outcome(task, number, update)
                waiting.append(self.lines[-1]["entry"])
            if (update + 1) % every == 0 or update + 1 == until:
                kept = update + 1
                self.checkpoint(number, kept)
                self.event("checkpoint", number, kept)
                self.event("deleted", number, kept, entries=waiting)
                waiting = []

    def claim(self, number: int, resumed_from: int | None) -> None:
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        claim = self.folder.checkpoints / f"incarnation-{number}.json"
        claim.write_text(json.dumps({"host": "h", "pid": 1, "time": self.clock}))
        if resumed_from is not None:
            claim.with_suffix(".resumed-from.json").write_text(json.dumps({"resumed_from": resumed_from}))
            self.lineage.append([number, resumed_from])

    def outcome(self, task: int, number: int, update: int, **other: object) -> None:
        self.clock += 1
        line: dict[str, Any] = {
            "task": task,
            "event": "dead_letter" if task in self.dead else "trained",
            "incarnation": number,
            "update": update,
            "entry": f"{self.clock * 1000 - 500:.0f}-{task}",
            "sending": [number, 1],
            "worker": "a",
            "deliveries": 1,
            "failures": 0,
            "time": self.clock,
        }
        if task in self.dead:
            line |= {"reason": "prompt_too_long", "detail": "…"}
        else:
            line |= {"score": 0.5, "tokens": 3, "versions": [f"{number}-{update}"]}
            line |= {"samples": self.samples} if self.samples > 1 else {}
        self.lines.append(line | other)

    def event(self, event: str, number: int, update: int, **other: object) -> None:
        self.clock += 1
        line = {"event": event, "incarnation": number, "update": update, "time": self.clock}
        self.events.append(line | other)

    def checkpoint(self, number: int, update: int, **other: object) -> None:
        """Write a complete checkpoint; `other` replaces fields of its ledger."""
        settled = self.settled.get(update, update * BATCH)
        dead = {str(task): "prompt_too_long" for task in sorted(self.dead) if task < settled}
        ledger = {"watermark": settled, "above": [], "dead": dead}
        state = {"update": update, "cursor": settled, "ledger": ledger | other, "lineage": self.lineage}
        folder = self.folder.checkpoints / f"{number}-{update}"
        folder.mkdir(exist_ok=True)
        (folder / "policy.safetensors").write_bytes(b"weights of %d" % update)
        (folder / "state.json").write_text(json.dumps(state))
        self.sign(number, update)

    def sign(self, number: int, update: int) -> None:
        """Update the checksums of a checkpoint after its files were changed."""
        folder = self.folder.checkpoints / f"{number}-{update}"
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("[ps]*")}
        (folder / "manifest.json").write_text(json.dumps({"files": digests}))

    def end(self, updates: int, **other: object) -> None:
        """Write the result of a run that has ended."""
        dead = len([task for task in self.dead if task < updates * BATCH])
        result = {"updates": updates, "tasks_trained": updates * BATCH - dead, "dead_letters": dead}
        result |= {"incarnations": len(self.lineage)} | other
        self.folder.result("ppo").write_text(json.dumps(result))

    def write(self) -> RunFolder:
        """Write the journals."""
        self.root.mkdir(parents=True, exist_ok=True)
        for path, lines in ((self.folder.ledger, self.lines), (self.folder.events, self.events)):
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return self.folder

    def line_of(self, task: int) -> dict[str, Any]:
        """Return the last line of a task."""
        return next(line for line in reversed(self.lines) if line["task"] == task)


def sound(root: Path, *, max_staleness: int = 0) -> MadeRun:
    """Return eight updates by two incarnations; the first died after update 5, its checkpoint is of 4."""
    made = MadeRun(root, max_staleness=max_staleness, dead=frozenset({6, 30}))
    made.incarnation(1, resumed_from=0, until=4)
    for task in range(16, 20):
        made.outcome(task, 1, 4)
    made.incarnation(2, resumed_from=4, until=8)
    return made


def kinds(made: MadeRun, *, errors: bool = True) -> dict[str, tuple[int, ...]]:
    report, _ = audit(made.write())
    found: dict[str, tuple[int, ...]] = {}
    for finding in report.findings:
        if finding.is_error == errors:
            found[finding.kind] = (*found.get(finding.kind, ()), *finding.tasks)
    assert report.is_clean == (not errors or not found)
    return found
