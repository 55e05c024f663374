"""Everything but tensors that a resumed run needs: what `state.json` of a checkpoint holds, in memory.

Which tasks are under way follows from it: those below the cursor that the ledger has not settled. Knows no
queue and no model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fairlead.config.training import PpoSection
from fairlead.errors import CorruptCheckpoint, SchemaTooNew
from trainer.checkpoint import Checkpoint
from trainer.ppo.ledger import Ledger

SCHEMA = 1
"""Version of a checkpoint's `state.json` that this code writes, and the newest that it reads."""


@dataclass
class Progress:
    """Where the run stands."""

    update: int = 0
    """Updates done."""
    cursor: int = 0
    """The next task to be dispatched; also where the order of prompts stands."""
    seconds: float = 0.0
    """Time spent by earlier incarnations up to their checkpoint."""
    ledger: Ledger = field(default_factory=Ledger)
    """What became of every task."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Progress:
        """What a checkpoint says.

        Raises:
            CorruptCheckpoint: if it lacks a field.
            SchemaTooNew: if a newer version of fairlead wrote it.
        """
        state = checkpoint.state
        try:
            schema = int(str(state.get("schema", 1)))
            if schema > SCHEMA:
                raise SchemaTooNew(
                    f"checkpoint {checkpoint.version} has schema {schema}, this fairlead reads up to "
                    f"{SCHEMA}: upgrade it"
                )
            return cls(
                update=int(str(state["update"])),
                cursor=int(str(state["cursor"])),
                seconds=float(str(state["seconds"])),
                ledger=Ledger.from_json(state.get("ledger")),
            )
        except (KeyError, ValueError) as error:
            raise CorruptCheckpoint(f"state.json of {checkpoint.version}: {error}") from error

    def state(self, *, seconds: float) -> dict[str, object]:
        """The inverse of `of`; `seconds` are those of this incarnation."""
        return {
            "schema": SCHEMA,
            "update": self.update,
            "cursor": self.cursor,
            "seconds": self.seconds + seconds,
            "ledger": self.ledger.to_json(),
        }

    def open_tasks(self) -> list[int]:
        """Tasks that were dispatched and are not settled, in order."""
        return [
            task_id
            for task_id in range(self.ledger.watermark, self.cursor)
            if not self.ledger.is_settled(task_id)
        ]

    def admit(self, section: PpoSection) -> range:
        """Moves the cursor as far as staleness allows and returns the tasks to be dispatched now.

        At most (max_staleness + 1) · batch_size tasks are open at any time, and none that no update would
        train: B tasks at a time in synchronous training, each exactly one batch.
        """
        batches = min(section.max_staleness + 1, section.updates - self.update)
        start = self.cursor
        self.cursor = max(start, self.ledger.settled_count + batches * section.batch_size)
        return range(start, self.cursor)
