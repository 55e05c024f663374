"""Wires the rollout worker: configuration → queue and clients → worker; signals and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys

from fairlead import metrics
from fairlead.clients import (
    AsyncPolicyClient,
    AsyncReferenceClient,
    AsyncRewardClient,
    ClientOptions,
    options_of,
)
from fairlead.config import RunConfig
from fairlead.config.serving import ModelServiceSection
from fairlead.errors import FairleadError
from fairlead.metrics import page as metrics_page
from fairlead.rpc.retry import RetryPolicy
from fairlead.transports.rollouts.redis_worker import RedisWorkerQueue
from fairlead.types import DeadLetter
from services.rollout_worker.peers import Clients, ModelServices, both, wait_for
from services.rollout_worker.worker import RolloutWorker
from services.runtime import process

logger = logging.getLogger(__name__)

_LEAVE_SECONDS = 2.0


async def run(config: RunConfig) -> None:
    """Works until a signal, then drains."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics.ProcessMetrics()
    counts = metrics.WorkerMetrics()
    workers: list[RolloutWorker] = []
    async with contextlib.AsyncExitStack() as stack:
        _, stop_metrics = metrics_page.serve(
            config.observe, tls=config.tls, ready=lambda: any(worker.ready for worker in workers)
        )
        stack.callback(stop_metrics)
        clients = _clients(config)
        stack.push_async_callback(clients.close)
        meeting = asyncio.create_task(
            both(_queue(config, counts, stack), ModelServices.meet(clients, run=config.name, counts=counts))
        )
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({meeting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not meeting.done():
            meeting.cancel()
            await asyncio.wait({meeting})
            return
        queue, peers = meeting.result()
        worker = RolloutWorker(
            queue=queue,
            peers=peers,
            section=config.rollout_worker,
            lease_seconds=config.queue.lease_seconds,
            counts=counts,
        )
        workers.append(worker)
        logger.info("ready, takes up to %d tasks", config.rollout_worker.max_in_flight)
        await worker.run(stop)


def _clients(config: RunConfig) -> Clients:
    retry = RetryPolicy(
        max_attempts=config.rollout_worker.retry_attempts, hedge_factor=config.rollout_worker.hedge_factor
    )

    def options(section: ModelServiceSection) -> ClientOptions:
        return options_of(config, timeout_seconds=section.timeout_seconds, retry=retry)

    return Clients(
        AsyncPolicyClient(config.policy.addresses, **options(config.policy)),
        AsyncRewardClient(config.reward.addresses, **options(config.reward)),
        AsyncReferenceClient(config.reference.addresses, **options(config.reference)),
    )


async def _queue(
    config: RunConfig, counts: metrics.WorkerMetrics, stack: contextlib.AsyncExitStack
) -> RedisWorkerQueue:
    consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

    def count(_: DeadLetter) -> None:
        counts.finished.labels(result="dead_letter").inc()

    queue = await wait_for(
        "the queue",
        lambda: RedisWorkerQueue.connect(
            config.queue, run=config.name, consumer=consumer, on_dead_letter=count
        ),
        kind="queue",
    )
    stack.push_async_callback(_leave, queue)
    return queue


async def _leave(queue: RedisWorkerQueue) -> None:
    try:
        await asyncio.wait_for(queue.close(), _LEAVE_SECONDS)
    except (FairleadError, TimeoutError) as error:
        logger.warning("left without a word to the queue: %s", error)


if __name__ == "__main__":
    sys.exit(process.main("rollout_worker", run))
