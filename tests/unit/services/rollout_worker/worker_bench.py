"""A running worker with a queue in memory and real gRPC servers with scripted responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config.serving import RolloutWorkerSection
from fairlead.transports.rollouts.base import OutcomeEntry
from fairlead.types import PromptTask, SamplingParams, TaskResult, WeightVersion
from services.rollout_worker.worker import RolloutWorker
from tests.memory_queue import MemoryBroker, MemoryTrainerQueue, MemoryWorkerQueue
from tests.scripted_services import (
    Script,
    model_services_of,
)

NAN = float("nan")


def task(
    task_id: int, *, prompt: tuple[int, ...] = (1, 2, 3), temperature: float = 0.5, samples: int = 1
) -> PromptTask:
    sampling = SamplingParams(temperature=temperature, max_new_tokens=8, seed=1000 + task_id)
    return PromptTask(
        task_id, prompt, f"prompt {task_id}", sampling, WeightVersion(1, 3), num_samples=samples
    )


@dataclass
class Bench:
    """A running worker, and both ends of its queue."""

    broker: MemoryBroker
    trainer: MemoryTrainerQueue
    worker: RolloutWorker
    stop: asyncio.Event
    running: asyncio.Task[None]
    registry: CollectorRegistry
    seen: dict[int, OutcomeEntry] = field(default_factory=dict)

    async def outcomes(self, count: int, *, seconds: float = 10) -> dict[int, TaskResult]:
        """Return the outcomes by task, once there are `count`."""
        async with asyncio.timeout(seconds):
            while True:
                entries = self.trainer.read(after="0", count=10_000, block_seconds=0)
                if len(entries) >= count:
                    return {entry.outcome.task.task_id: entry.outcome.result for entry in entries}
                await asyncio.sleep(0.005)

    async def until(self, condition) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - a condition with a deadline
                await asyncio.sleep(0.005)

    def counted(self, result: str) -> float:
        found = self.registry.get_sample_value("fairlead_worker_tasks_total", {"result": result})
        return found or 0.0


@asynccontextmanager
async def bench(
    script: Script,
    *,
    tasks: list[PromptTask],
    in_flight: int = 8,
    lease: float = 0.3,
    drain: float = 5.0,
    timeout: float = 10.0,
    queue: type[MemoryWorkerQueue] = MemoryWorkerQueue,
) -> AsyncIterator[Bench]:
    broker = MemoryBroker(lease_seconds=lease)
    trainer = broker.trainer()
    trainer.take_fence(1)
    trainer.dispatch(tasks)
    registry = CollectorRegistry()
    worker_metrics = metrics.WorkerMetrics(registry)
    async with model_services_of(script, worker_metrics=worker_metrics, timeout_seconds=timeout) as services:
        section = RolloutWorkerSection(max_in_flight=in_flight, drain_seconds=drain)
        worker = RolloutWorker(
            queue=queue(broker, "w"),
            answer=services.answer,
            section=section,
            lease_seconds=lease,
            metrics=worker_metrics,
            num_samples=tasks[0].num_samples,
        )
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        try:
            yield Bench(broker, trainer, worker, stop, running, registry)
        finally:
            stop.set()
            await asyncio.gather(running, return_exceptions=True)
