"""A run without a model: the trainer's parts around weights that count how often each task was trained.

Queue, ledger, journal, checkpoints, weight store and lineage are real and used in the order of
`trainer.ppo.train`. The final weights show whether every task counted once, since they consist of nothing
else. Tests of faults of Redis and of files use it; it does dozens of updates per second.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from fairlead.audit import Report, audit
from fairlead.config import RunFolder
from fairlead.config.infrastructure import QueueSection
from fairlead.config.training import PpoSection
from fairlead.errors import QueueUnavailable
from fairlead.transports.rollouts.base import Claim
from fairlead.transports.rollouts.redis_snapshot import take_snapshot
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.transports.rollouts.redis_worker import RedisWorkerQueue
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import (
    Completion,
    DeadLetter,
    FinishReason,
    PromptTask,
    Rollout,
    SamplingParams,
    TaskResult,
    VersionSpan,
    WeightVersion,
)
from trainer.checkpoint import CheckpointStore
from trainer.ppo.collect import Collector
from trainer.ppo.incarnation import Incarnation
from trainer.ppo.progress import TrainingProgress
from trainer.ppo.retry_queue import QueueRetry
from trainer.ppo.task_records import TaskRecords

RUN = "bare"
BATCH = 8


class BareRun:
    """The folder of one run, in which trainers are started one after another or two at once."""

    def __init__(
        self, root: Path, url: str, *, updates: int = 12, max_staleness: int = 0, num_samples: int = 1
    ) -> None:
        self.folder = RunFolder(root)
        self.section = QueueSection(
            redis_url=url, lease_seconds=0.5, stall_seconds=0.3, give_up_seconds=30, max_deliveries=1000
        )
        self.ppo = PpoSection(
            updates=updates,
            batch_size=BATCH * num_samples,
            num_samples=num_samples,
            mini_batch_size=BATCH,
            max_staleness=max_staleness,
        )
        self.every = 3
        self.keep = 2

    def train(self, on_update: Callable[[int], None] | None = None) -> torch.Tensor:
        """Run one incarnation to the last update; return the weights: how often each task counted."""
        with closing(RedisTrainerQueue.connect(self.section, run=RUN)) as queue:
            checkpoints = CheckpointStore(self.folder.checkpoints)
            store = FilesystemWeightStore(self.folder.weights)
            incarnation = Incarnation(
                self.folder.checkpoints, queue=queue, checkpoints=checkpoints, store=store
            )
            found = incarnation.claim(QueueRetry(self.section, lambda _: None))
            progress = TrainingProgress.from_checkpoint(found) if found else TrainingProgress()
            counts = (
                found.tensors["policy"]["counts"]
                if found
                else torch.zeros(self.ppo.updates * BATCH, dtype=torch.int64)
            )
            incarnation.begin(progress.update)
            records = TaskRecords.open(self.folder, progress.ledger, incarnation=incarnation.number)
            with closing(records):
                records.events.begun(progress.update, self.ppo)
                collector = Collector(
                    queue,
                    records=records,
                    lineage=incarnation.lineage,
                    section=self.section,
                    on_wait=lambda _: None,
                )
                trainer = _BareTrainer(
                    run=self,
                    progress=progress,
                    counts=counts,
                    incarnation=incarnation,
                    checkpoints=checkpoints,
                    store=store,
                    collector=collector,
                    records=records,
                    checkpoint_update=progress.update,
                )
                trainer.train(on_update or (lambda _: None))
            result = {"updates": progress.update, "incarnations": len(incarnation.lineage)}
            self.folder.result("ppo").write_text(json.dumps(result))
            return counts

    def audited(self) -> Report:
        """Return the audit of the run in its present state."""
        report, _ = audit(self.folder, read_queue=lambda: take_snapshot(self.section, run=RUN))
        return report

    def check(
        self, counts: torch.Tensor, *, dead: frozenset[int] = frozenset(), brought_back: bool = False
    ) -> Report:
        """Check by weights, audit and queue that every task counted once.

        `brought_back`: Redis was restored to an earlier state, so workers may finish settled tasks again.
        """
        assert counts.tolist() == [int(task not in dead) for task in range(self.ppo.updates * BATCH)]
        report = self.audited()
        assert report.is_clean, report.findings
        assert (report.ended, report.open, report.queue_error) == (True, 0, "")
        assert (report.trained, report.dead) == (self.ppo.updates * BATCH - len(dead), len(dead))
        assert report.max_staleness_seen <= self.ppo.max_staleness
        assert report.queue is not None
        assert brought_back or report.queue["outcomes"] == 0, take_snapshot(self.section, run=RUN)
        return report


@dataclass
class _BareTrainer:
    """One trainer's loop; its steps have the order of `trainer.ppo.train`."""

    run: BareRun
    progress: TrainingProgress
    counts: torch.Tensor
    incarnation: Incarnation
    checkpoints: CheckpointStore
    store: FilesystemWeightStore
    collector: Collector
    records: TaskRecords
    checkpoint_update: int
    parent: WeightVersion | None = None

    def train(self, on_update: Callable[[int], None]) -> None:
        ppo = self.run.ppo
        self.publish()
        self.progress.open_new_tasks(ppo)
        self.send(self.progress.open_tasks())
        while self.progress.update < ppo.updates:
            entries = self.collector.wait(size=BATCH)
            self.records.journal.append(entries, update=self.progress.update)
            for entry in entries:
                task_id = entry.outcome.task.task_id
                result = entry.outcome.result
                dead_reason = result.reason if isinstance(result, DeadLetter) else None
                self.progress.ledger.settle(task_id, dead_reason=dead_reason)
                self.counts[task_id] += dead_reason is None
            self.progress.update += 1
            self.publish()
            self.send(self.progress.open_new_tasks(ppo))
            self.collector.settled(entries, checkpoint_update=self.checkpoint_update)
            if self.progress.update % self.run.every == 0 or self.progress.update == ppo.updates:
                self.checkpoint()
            on_update(self.progress.update)

    def send(self, task_ids: range | list[int]) -> None:
        version = self.incarnation.version(self.progress.update)
        tasks = [
            PromptTask(
                task_id,
                (1, task_id + 2),
                f"p{task_id}",
                SamplingParams(seed=task_id),
                version,
                num_samples=self.run.ppo.num_samples,
            )
            for task_id in task_ids
        ]
        staleness = self.run.ppo.max_staleness
        self.collector.send(tasks, update=self.progress.update, max_staleness=staleness)

    def publish(self) -> None:
        version = self.incarnation.version(self.progress.update)
        with self.store.publish(version, parent=self.parent, lineage=self.incarnation.lineage) as folder:
            save_file({"counts": self.counts}, folder / "model-00001.safetensors")
        self.store.prune(keep=3)
        self.parent = version

    def checkpoint(self) -> None:
        lineage = [[one.incarnation, one.resumed_from] for one in self.incarnation.lineage]
        self.checkpoints.save(
            self.incarnation.version(self.progress.update),
            tensors={"policy": {"counts": self.counts}},
            state={**self.progress.state(seconds=0.0), "lineage": lineage},
        )
        self.checkpoints.prune(keep=self.run.keep, lineage=self.incarnation.lineage)
        self.checkpoint_update = self.progress.update
        self.collector.checkpointed(self.progress.update)


class Workers:
    """Two workers in a thread that answer at once and keep results until Redis accepts them."""

    def __init__(
        self,
        run: BareRun,
        *,
        dead: frozenset[int] = frozenset(),
        before_finish: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`before_finish` is called with the task before every attempt to return a result."""
        self._section, self._dead, self._before_finish = run.section, dead, before_finish
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()), daemon=True)
        self.kept = 0
        """Number of attempts to return a result that Redis refused."""

    def __enter__(self) -> Workers:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()

    async def _work(self) -> None:
        await asyncio.gather(*(self._one(name) for name in ("a", "b")))

    async def _one(self, name: str) -> None:
        while not self._stop.is_set():
            with suppress(QueueUnavailable):
                queue = await RedisWorkerQueue.connect(self._section, run=RUN, consumer=name)
                try:
                    await self._claim(queue)
                finally:
                    with suppress(QueueUnavailable):
                        await queue.close()
            await asyncio.sleep(0.02)

    async def _claim(self, queue: RedisWorkerQueue) -> None:
        while not self._stop.is_set():
            for claim in await queue.claim(count=4, block_seconds=0.1):
                await self._finish(queue, claim)

    async def _finish(self, queue: RedisWorkerQueue, claim: Claim) -> None:
        while not self._stop.is_set():
            self._before_finish(claim.task.task_id)
            try:
                await queue.finish(claim, self._answer(claim.task))
                return
            except QueueUnavailable:
                self.kept += 1
                await asyncio.sleep(0.02)

    def _answer(self, task: PromptTask) -> TaskResult:
        if task.task_id in self._dead:
            return DeadLetter("prompt_too_long", "…")
        spans = (VersionSpan(task.min_version, 0, 2),)
        completion = Completion((5, 6), (-0.5, -0.25), FinishReason.STOP, spans, text="x y")
        return (Rollout(completion, 0.5, "r", (-0.75, -1.0)),) * task.num_samples
