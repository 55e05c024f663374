"""What became of every task: the ledger in the checkpoint, and the journal that an audit reads.

The ledger (a low watermark plus exceptions) is the truth; the journal `ledger.jsonl` gets every outcome
before its entry leaves the queue. Lines of lineages that were given up stay in it and are told apart by
incarnation and update.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.errors import CorruptCheckpoint
from fairlead.transports.rollouts.base import OutcomeEntry
from fairlead.transports.weights.base import Ancestor, is_valid
from fairlead.types import DeadLetter, Rollout, WeightVersion
from trainer import durable


@dataclass
class Ledger:
    """Outcome of every task, in memory."""

    watermark: int = 0
    """Every task below it is settled."""
    above: set[int] = field(default_factory=set)
    """Settled tasks above the watermark."""
    dead: dict[int, str] = field(default_factory=dict)
    """Dead tasks and their reasons; every other settled task was trained on."""

    @property
    def settled_count(self) -> int:
        """Tasks that were trained on or are dead."""
        return self.watermark + len(self.above)

    def is_settled(self, task_id: int) -> bool:
        """Whether the task was trained on or is dead."""
        return task_id < self.watermark or task_id in self.above

    def settle(self, task_id: int, *, dead_reason: str | None = None) -> None:
        """Enters an outcome.

        Raises:
            ValueError: if the task is settled already: it would count twice.
        """
        if self.is_settled(task_id):
            raise ValueError(f"task {task_id} is settled already")
        if dead_reason is not None:
            self.dead[task_id] = dead_reason
        self.above.add(task_id)
        while self.watermark in self.above:
            self.above.discard(self.watermark)
            self.watermark += 1

    def to_json(self) -> dict[str, object]:
        """The form that the checkpoint keeps."""
        dead = {str(task_id): reason for task_id, reason in sorted(self.dead.items())}
        return {"watermark": self.watermark, "above": sorted(self.above), "dead": dead}

    @classmethod
    def from_json(cls, value: object) -> Ledger:
        """The inverse of `to_json`.

        Raises:
            CorruptCheckpoint: if it has another form.
        """
        try:
            content: Any = value
            return cls(
                watermark=int(content["watermark"]),
                above={int(task_id) for task_id in content["above"]},
                dead={int(task_id): str(reason) for task_id, reason in content["dead"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptCheckpoint(f"the checkpoint's ledger has an unknown form: {error}") from error


class Journal:
    """Appends to `ledger.jsonl`; what was appended is on the disk when the call returns."""

    def __init__(self, path: Path, *, incarnation: int) -> None:
        self._incarnation = incarnation
        self._file = durable.open_lines(path)

    def append(self, entries: Iterable[OutcomeEntry], *, event: str | None = None, update: int) -> None:
        """One line per entry.

        Args:
            entries: outcomes as they lay in the queue.
            event: why an entry is discarded; None if it counts: `trained` or `dead_letter`.
            update: updates behind the weights before this outcome counted.
        """
        lines = [self._line(entry, event, update) for entry in entries]
        if lines:
            self._file.write("".join(f"{durable.dumps(line)}\n" for line in lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _line(self, entry: OutcomeEntry, event: str | None, update: int) -> dict[str, object]:
        outcome, result = entry.outcome, entry.outcome.result
        line: dict[str, object] = {
            "task": outcome.task.task_id,
            "event": event or ("trained" if isinstance(result, Rollout) else "dead_letter"),
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
        return line | {
            "score": result.score,
            "scored_as_text": result.scored_as_text,
            "tokens": len(result.completion.token_ids),
            "finish": result.completion.finish_reason.value if result.completion.finish_reason else None,
            "versions": [str(span.version) for span in result.completion.version_spans],
        }


def read_journal(path: Path) -> Iterator[Mapping[str, Any]]:
    """Every line of the journal; a line torn by a crash is left out."""
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


@dataclass(frozen=True, slots=True)
class Audit:
    """What the journal says about the lineage of the final weights."""

    trained: int
    """Tasks trained on."""
    dead_letters: int
    """Tasks given up, with a reason."""
    duplicated: int
    """Outcomes that counted although their task had counted before."""
    lost: int
    """Tasks that are not open and have no outcome, or one that the ledger contradicts."""
    scores: Mapping[int, tuple[float, ...]]
    """Scores of the trained tasks, by update."""


def audit(
    path: Path, *, ledger: Ledger, cursor: int, lineage: Sequence[Ancestor], open_tasks: int = 0
) -> Audit:
    """Counts outcomes in the lineage of the final weights, and holds them against the ledger.

    `fairlead audit` counts for itself and compares; they share nothing, so that a mistake in one is seen.

    `open_tasks`: how many of the tasks below the cursor are rightly without an outcome, because the run was
    stopped while they were under way.
    """
    outcomes: dict[int, str] = {}
    times: Counter[int] = Counter()
    scores: dict[int, list[float]] = {}
    for line in read_journal(path):
        made = WeightVersion(int(line["incarnation"]), int(line["update"]) + 1)
        if line["event"] not in ("trained", "dead_letter") or not is_valid(made, lineage):
            continue
        task_id = int(line["task"])
        outcomes[task_id] = line["event"]
        times[task_id] += 1
        if line["event"] == "trained":
            scores.setdefault(int(line["update"]), []).append(float(line["score"]))
    right = sum(
        outcomes.get(task_id) == ("dead_letter" if task_id in ledger.dead else "trained")
        and ledger.is_settled(task_id)
        for task_id in range(cursor)
    )
    return Audit(
        trained=sum(event == "trained" for event in outcomes.values()),
        dead_letters=sum(event == "dead_letter" for event in outcomes.values()),
        duplicated=sum(times.values()) - len(times),
        lost=cursor - open_tasks - right,
        scores={update: tuple(values) for update, values in scores.items()},
    )
