"""Wire the rollout worker: configuration → queue and clients → worker; signals and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys

from fairlead.clients.rollout import RolloutClients, run_both
from fairlead.config import RunConfig
from fairlead.errors import FairleadError
from fairlead.metrics import WorkerMetrics
from fairlead.metrics import page as metrics_page
from fairlead.rpc.retry import RetryPolicy
from fairlead.transports.rollouts.redis_worker import RedisWorkerQueue
from fairlead.types import DeadLetter
from services.rollout_worker.model_services import ModelServices, wait_for
from services.rollout_worker.worker import RolloutWorker
from services.runtime import process

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 2.0


async def run(config: RunConfig) -> None:
    """Work until a signal, then drain."""
    stop = asyncio.Event()
    process.on_stop(stop.set)
    worker_metrics = WorkerMetrics()
    workers: list[RolloutWorker] = []
    async with contextlib.AsyncExitStack() as stack:
        _, stop_metrics = metrics_page.serve(
            config.observe, tls=config.tls, ready=lambda: any(worker.ready for worker in workers)
        )
        stack.callback(stop_metrics)
        retry = RetryPolicy(
            max_attempts=config.rollout_worker.retry_attempts,
            hedge_factor=config.rollout_worker.hedge_factor,
        )
        clients = await stack.enter_async_context(RolloutClients.of(config, retry=retry))
        connecting = asyncio.create_task(
            run_both(
                _queue(config, worker_metrics, stack),
                ModelServices.connect(
                    clients,
                    run=config.name,
                    worker_metrics=worker_metrics,
                    num_samples=config.ppo.num_samples,
                ),
            )
        )
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({connecting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not connecting.done():
            connecting.cancel()
            await asyncio.wait({connecting})
            return
        queue, services = connecting.result()
        worker = RolloutWorker(
            queue=queue,
            answer=services.answer,
            section=config.rollout_worker,
            num_samples=config.ppo.num_samples,
            lease_seconds=config.queue.lease_seconds,
            metrics=worker_metrics,
        )
        workers.append(worker)
        logger.info("ready: up to %d tasks at the same time", worker.max_tasks)
        await worker.run(stop)


async def _queue(
    config: RunConfig, worker_metrics: WorkerMetrics, stack: contextlib.AsyncExitStack
) -> RedisWorkerQueue:
    consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

    def count(_: DeadLetter) -> None:
        worker_metrics.finished.labels(result="dead_letter").inc()

    queue = await wait_for(
        "the queue",
        lambda: RedisWorkerQueue.connect(
            config.queue, run=config.name, consumer=consumer, on_dead_letter=count
        ),
        kind="queue",
    )
    stack.push_async_callback(_close, queue)
    return queue


async def _close(queue: RedisWorkerQueue) -> None:
    try:
        await asyncio.wait_for(queue.close(), _CLOSE_SECONDS)
    except (FairleadError, TimeoutError) as error:
        logger.warning("could not close the consumer in the queue: %s", error or "timed out")


if __name__ == "__main__":
    sys.exit(process.main("rollout_worker", run))
