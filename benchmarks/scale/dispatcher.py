"""The trainer's side of the queue without learning: real dispatch, admission and ledger."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable

from benchmarks.scale.waiting_services import VOCABULARY
from fairlead.config.folder import RunFolder
from fairlead.config.infrastructure import QueueSection
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.transports.weights.base import Ancestor
from fairlead.types import DeadLetter, PromptTask, SamplingParams, WeightVersion
from trainer.ppo.collect import Collector
from trainer.ppo.progress import Ledger
from trainer.ppo.task_records import TaskRecords

PROMPT_TOKENS = 128
UPDATES_PER_CHECKPOINT = 10


class Dispatcher:
    """Keeps a number of tasks open and settles their outcomes as the trainer would."""

    def __init__(
        self, section: QueueSection, *, run: str, folder: RunFolder, in_flight: int, batch: int
    ) -> None:
        """
        Args:
            section: where the queue is.
            run: its name.
            folder: gets the journals.
            in_flight: tasks under way, a multiple of `batch`.
            batch: rollouts of an update.
        """
        self._in_flight, self._batch = in_flight, batch
        queue = RedisTrainerQueue(section, run=run)
        queue.take_fence(1)
        folder.root.mkdir(parents=True)
        self._records = TaskRecords.open(folder, Ledger(), incarnation=1)
        self._collector = Collector(
            queue,
            records=self._records,
            lineage=(Ancestor(1, 0),),
            section=section,
            on_wait=lambda _: None,
        )
        rng = random.Random(0)
        self._prompt = tuple(rng.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS))
        self._update, self._sent, self._checkpoint = 0, 0, 0

    def close(self) -> None:
        """Close the journals."""
        self._records.close()

    def run(self, seconds: float) -> tuple[int, float]:
        """Run for at least some seconds; return the settled rollouts and the elapsed seconds.

        Raises:
            AssertionError: a task died, which no wait of these services brings about.
        """
        begun, settled = time.monotonic(), 0
        while time.monotonic() - begun < seconds:
            settled += self._one_update()
        return settled, time.monotonic() - begun

    def _one_update(self) -> int:
        self._send(range(self._sent, self._records.ledger.settled_count + self._in_flight))
        entries = self._collector.wait(size=self._batch)
        self._records.journal.append(entries, update=self._update)
        for entry in entries:
            assert not isinstance(entry.outcome.result, DeadLetter), entry.outcome.result
            self._records.ledger.settle(entry.outcome.task.task_id)
        self._update += 1
        self._collector.settled(entries, checkpoint_update=self._checkpoint)
        if self._update % UPDATES_PER_CHECKPOINT == 0:
            self._checkpoint = self._update
            self._collector.checkpointed(self._update)
        return len(entries)

    def _send(self, task_ids: Iterable[int]) -> None:
        version = WeightVersion(1, self._update)
        tasks = [
            PromptTask(task_id, self._prompt, "", SamplingParams(seed=task_id), version)
            for task_id in task_ids
        ]
        self._sent += len(tasks)
        self._collector.send(tasks, update=self._update, max_staleness=self._in_flight // self._batch)
