"""Everything except tensors that a resumed run needs: the contents of a checkpoint's `state.json`.

The ledger records the outcome of every task. The tasks under way follow from it: those below the cursor that
are not settled. Knows nothing about the queue or models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fairlead.config.training import PpoSection
from fairlead.errors import CorruptCheckpoint, SchemaTooNew
from trainer.checkpoint import Checkpoint

SCHEMA = 1
"""Version of `state.json` that this code writes, and the newest that it reads."""


@dataclass
class Ledger:
    """The outcome of every task: a low watermark plus exceptions."""

    watermark: int = 0
    """Every task below it is settled."""
    above: set[int] = field(default_factory=set)
    """Settled tasks above the watermark."""
    dead: dict[int, str] = field(default_factory=dict)
    """Dead tasks and their reasons."""
    no_signal: set[int] = field(default_factory=set)
    """Tasks from whose answers nothing could be learnt; every other settled task was trained on."""

    @property
    def settled_count(self) -> int:
        """Number of tasks that were trained on, are dead, or had no signal."""
        return self.watermark + len(self.above)

    def is_settled(self, task_id: int) -> bool:
        """Return whether the task was trained on, is dead, or had no signal."""
        return task_id < self.watermark or task_id in self.above

    def settle(self, task_id: int, *, dead_reason: str | None = None, no_signal: bool = False) -> None:
        """Record that a task was trained on, that it is dead, or that its answers had no signal.

        Raises:
            ValueError: if the task is already settled: it would count twice.
        """
        if self.is_settled(task_id):
            raise ValueError(f"task {task_id} is already settled")
        if dead_reason is not None:
            self.dead[task_id] = dead_reason
        if no_signal:
            self.no_signal.add(task_id)
        self.above.add(task_id)
        while self.watermark in self.above:
            self.above.discard(self.watermark)
            self.watermark += 1

    def to_json(self) -> dict[str, object]:
        """Return the JSON form for the checkpoint."""
        dead = {str(task_id): reason for task_id, reason in sorted(self.dead.items())}
        found: dict[str, object] = {"watermark": self.watermark, "above": sorted(self.above), "dead": dead}
        return found | ({"no_signal": sorted(self.no_signal)} if self.no_signal else {})

    @classmethod
    def from_json(cls, value: object) -> Ledger:
        """Read what `to_json` returned.

        Raises:
            CorruptCheckpoint: if the value has another form.
        """
        try:
            content: Any = value
            return cls(
                watermark=int(content["watermark"]),
                above={int(task_id) for task_id in content["above"]},
                dead={int(task_id): str(reason) for task_id, reason in content["dead"].items()},
                no_signal={int(task_id) for task_id in content.get("no_signal", ())},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptCheckpoint(f"the checkpoint has an invalid ledger: {error!r}") from error


@dataclass
class TrainingProgress:
    """How far the run has got."""

    update: int = 0
    """Updates done."""
    cursor: int = 0
    """The next task to be dispatched, which is also the position in the order of prompts."""
    seconds: float = 0.0
    """Time that earlier incarnations spent up to their checkpoint."""
    ledger: Ledger = field(default_factory=Ledger)
    """What became of every task."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> TrainingProgress:
        """Read the progress that a checkpoint holds.

        Raises:
            CorruptCheckpoint: if a field is missing or invalid.
            SchemaTooNew: if a newer version of fairlead wrote it.
        """
        state = checkpoint.state
        try:
            schema = int(str(state.get("schema", 1)))
            if schema > SCHEMA:
                raise SchemaTooNew(
                    f"checkpoint {checkpoint.version} has schema {schema}, this version of fairlead reads "
                    f"schemas up to {SCHEMA}: upgrade fairlead"
                )
            return cls(
                update=int(str(state["update"])),
                cursor=int(str(state["cursor"])),
                seconds=float(str(state["seconds"])),
                ledger=Ledger.from_json(state.get("ledger")),
            )
        except (KeyError, ValueError) as error:
            raise CorruptCheckpoint(f"state.json of checkpoint {checkpoint.version}: {error!r}") from error

    def state(self, *, seconds: float) -> dict[str, object]:
        """Return what `from_checkpoint` reads; `seconds` is the time spent by this incarnation."""
        return {
            "schema": SCHEMA,
            "update": self.update,
            "cursor": self.cursor,
            "seconds": self.seconds + seconds,
            "ledger": self.ledger.to_json(),
        }

    def open_tasks(self) -> list[int]:
        """Return the tasks that were dispatched and are not settled, in order."""
        return [
            task_id
            for task_id in range(self.ledger.watermark, self.cursor)
            if not self.ledger.is_settled(task_id)
        ]

    def open_new_tasks(self, section: PpoSection, *, without_signal: int = 0) -> range:
        """Advance the cursor as far as staleness allows and return the tasks to dispatch now.

        At most max_staleness + 1 batches of tasks are open at any time, and no task that no update would
        train: in synchronous training exactly one batch at a time.

        Args:
            section: batch size, staleness, number of updates.
            without_signal: open tasks that take no place in a batch, because their answers have no signal.
        """
        batches = min(section.max_staleness + 1, section.updates - self.update)
        start = self.cursor
        wanted = batches * section.tasks_per_update + without_signal
        self.cursor = max(start, self.ledger.settled_count + wanted)
        return range(start, self.cursor)
