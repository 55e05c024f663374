"""A real rollout worker whose answers cost nothing: `python -m benchmarks.scale.queue_worker`.

What it and Redis spend on a rollout is what the queue costs; no call is made.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from fairlead import config, metrics
from fairlead.config import RunConfig
from fairlead.transports.rollouts.redis_worker import RedisWorkerQueue
from fairlead.types import Completion, FinishReason, PromptTask, Rollout, VersionSpan
from services.rollout_worker.worker import RolloutWorker


class WaitingAnswers:
    """Answers every task after a delay."""

    def __init__(self, *, seconds: float, tokens: int) -> None:
        self._seconds = seconds
        self._ids = tuple(range(tokens))
        self._logprobs = tuple(-float(number % 7) / 8 for number in range(tokens))

    async def answer(self, task: PromptTask, exclusive: bool = False) -> tuple[Rollout, ...]:
        """Return the same rollouts for every task, made by the requested weights."""
        await asyncio.sleep(self._seconds)
        span = VersionSpan(task.min_version, 0, len(self._ids))
        completion = Completion(self._ids, self._logprobs, FinishReason.STOP, (span,))
        return (Rollout(completion, 0.5, "waits", self._logprobs),) * task.num_samples


async def work(settings: RunConfig, answers: WaitingAnswers) -> None:
    """Run until a signal."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    queue = await RedisWorkerQueue.connect(settings.queue, run=settings.name, consumer=f"w-{os.getpid()}")
    worker = RolloutWorker(
        queue=queue,
        answer=answers.answer,
        section=settings.rollout_worker,
        lease_seconds=settings.queue.lease_seconds,
        metrics=metrics.WorkerMetrics(),
    )
    await worker.run(stop)
    await queue.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and run."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale.queue_worker", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the run's TOML file")
    parser.add_argument("--seconds", type=float, required=True, help="that an answer takes")
    parser.add_argument("--tokens", type=int, required=True, help="of an answer")
    flags = parser.parse_args(argv)
    asyncio.run(work(config.load(flags.config), WaitingAnswers(seconds=flags.seconds, tokens=flags.tokens)))


if __name__ == "__main__":
    main()
