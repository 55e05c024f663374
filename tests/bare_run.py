"""A run without a model: the trainer's own parts around weights that count how often each task was trained.

Real queue, ledger, journal, checkpoints, weight store and lineage; what `trainer.ppo.train` does with them,
in its order. At the end the weights themselves must say that every task counted once, since they are made of
nothing else. For faults of Redis and of files, dozens of updates a second.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import closing, suppress
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
    VersionSpan,
    WeightVersion,
)
from trainer.checkpoint import CheckpointStore
from trainer.ppo.collect import Collector
from trainer.ppo.events import Books
from trainer.ppo.incarnation import Incarnation
from trainer.ppo.patience import Patience
from trainer.ppo.progress import Progress

RUN = "bare"
BATCH = 8


class BareRun:
    """One run's folder; trainers are started in it one after another, or two at once."""

    def __init__(self, root: Path, url: str, *, updates: int = 12, max_staleness: int = 0) -> None:
        self.folder = RunFolder(root)
        self.section = QueueSection(
            redis_url=url, lease_seconds=0.5, stall_seconds=0.3, give_up_seconds=30, max_deliveries=1000
        )
        self.ppo = PpoSection(
            updates=updates, batch_size=BATCH, mini_batch_size=BATCH, max_staleness=max_staleness
        )
        self.every, self.keep = 3, 2

    def train(self, on_update: Callable[[int], None] | None = None) -> torch.Tensor:
        """One incarnation, to the last update; returns the weights: how often each task counted."""
        with closing(RedisTrainerQueue.connect(self.section, run=RUN)) as queue:
            checkpoints = CheckpointStore(self.folder.checkpoints)
            store = FilesystemWeightStore(self.folder.weights)
            tenure = Incarnation(self.folder.checkpoints, queue=queue, checkpoints=checkpoints, store=store)
            found = tenure.claim(Patience(self.section, lambda _: None))
            progress = Progress.of(found) if found else Progress()
            counts = (
                found.tensors["policy"]["counts"]
                if found
                else torch.zeros(self.ppo.updates * BATCH, dtype=torch.int64)
            )
            tenure.begin(progress.update)
            books = Books.open(self.folder, progress.ledger, incarnation=tenure.incarnation)
            with closing(books):
                books.events.begun(progress.update, self.ppo)
                collector = Collector(
                    queue, books=books, lineage=tenure.lineage, section=self.section, on_wait=lambda _: None
                )
                one = _Incarnation(self, progress, counts, tenure, checkpoints, store, collector, books)
                one.run(on_update or (lambda _: None))
            result = {"updates": progress.update, "incarnations": len(tenure.lineage)}
            self.folder.result("ppo").write_text(json.dumps(result))
            return counts

    def audited(self) -> Report:
        """The audit of the run as it lies there."""
        report, _ = audit(self.folder, look=lambda: take_snapshot(self.section, run=RUN))
        return report

    def check(
        self, counts: torch.Tensor, *, dead: frozenset[int] = frozenset(), brought_back: bool = False
    ) -> Report:
        """Weights, audit and queue say that every task counted once.

        `brought_back`: Redis went back in time, so workers may finish settled tasks that nobody reads.
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


class _Incarnation:
    """One trainer's loop; the order of its steps is that of `trainer.ppo.train`."""

    def __init__(
        self,
        run: BareRun,
        progress: Progress,
        counts: torch.Tensor,
        tenure: Incarnation,
        checkpoints: CheckpointStore,
        store: FilesystemWeightStore,
        collector: Collector,
        books: Books,
    ) -> None:
        self.settings, self.progress, self.counts, self.tenure = run, progress, counts, tenure
        self.checkpoints, self.store, self.collector, self.books = checkpoints, store, collector, books
        self.parent: WeightVersion | None = None
        self.checkpoint_update = progress.update

    def run(self, on_update: Callable[[int], None]) -> None:
        self.publish()
        self.progress.admit(self.settings.ppo)
        self.send(self.progress.open_tasks())
        while self.progress.update < self.settings.ppo.updates:
            entries = self.collector.wait(size=BATCH)
            self.books.journal.append(entries, update=self.progress.update)
            for entry in entries:
                task, result = entry.outcome.task.task_id, entry.outcome.result
                dead = result.reason if isinstance(result, DeadLetter) else None
                self.progress.ledger.settle(task, dead_reason=dead)
                self.counts[task] += dead is None
            self.progress.update += 1
            self.publish()
            self.send(self.progress.admit(self.settings.ppo))
            self.collector.settled(entries, checkpoint_update=self.checkpoint_update)
            if self.progress.update % self.settings.every == 0 or (
                self.progress.update == self.settings.ppo.updates
            ):
                self.checkpoint()
            on_update(self.progress.update)

    def send(self, task_ids: range | list[int]) -> None:
        version = self.tenure.version(self.progress.update)
        tasks = [
            PromptTask(task, (1, task + 2), f"p{task}", SamplingParams(seed=task), version)
            for task in task_ids
        ]
        staleness = self.settings.ppo.max_staleness
        self.collector.send(tasks, update=self.progress.update, max_staleness=staleness)

    def publish(self) -> None:
        version = self.tenure.version(self.progress.update)
        with self.store.publish(version, parent=self.parent, lineage=self.tenure.lineage) as folder:
            save_file({"counts": self.counts}, folder / "model-00001.safetensors")
        self.store.prune(keep=3)
        self.parent = version

    def checkpoint(self) -> None:
        lineage = [[one.incarnation, one.resumed_from] for one in self.tenure.lineage]
        self.checkpoints.save(
            self.tenure.version(self.progress.update),
            tensors={"policy": {"counts": self.counts}},
            state={**self.progress.state(seconds=0.0), "lineage": lineage},
        )
        self.checkpoints.prune(keep=self.settings.keep, lineage=self.tenure.lineage)
        self.checkpoint_update = self.progress.update
        self.collector.checkpointed(self.progress.update)


class Workers:
    """Two workers in a thread that answer at once and keep what Redis does not take until it does."""

    def __init__(
        self,
        run: BareRun,
        *,
        dead: frozenset[int] = frozenset(),
        before_finish: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`before_finish` is told the task of every try to hand in a result."""
        self._section, self._dead, self._before_finish = run.section, dead, before_finish
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()), daemon=True)
        self.kept = 0
        """Times that a result was held back because Redis did not take it."""

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

    def _answer(self, task: PromptTask) -> Rollout | DeadLetter:
        if task.task_id in self._dead:
            return DeadLetter("prompt_too_long", "…")
        spans = (VersionSpan(task.min_version, 0, 2),)
        completion = Completion((5, 6), (-0.5, -0.25), FinishReason.STOP, spans, text="x y")
        return Rollout(completion, 0.5, "r", (-0.75, -1.0))
