"""A real reward service in this process: server, model, batcher and every dialect, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config.observe import ObserveSection
from fairlead.config.reward import RewardSection
from services.reward.scorer import RewardScorer
from services.reward.scoring import LocalScoring
from services.reward.servicer import SERVICE_NAME, RewardServicer
from services.runtime.batching import MicroBatcher
from services.runtime.bulk import Bounds
from services.runtime.server import ModelServer


@dataclass
class World:
    """What is served, and where."""

    address: str
    server: ModelServer
    scorer: RewardScorer
    batcher: MicroBatcher
    registry: CollectorRegistry

    def count(self, name: str, method: str, **labels: str) -> float:
        """A counter of the server."""
        found = self.registry.get_sample_value(
            name, {"grpc_service": SERVICE_NAME, "grpc_method": method, **labels}
        )
        return found or 0.0


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


@asynccontextmanager
async def reward_service(path, **settings) -> AsyncIterator[World]:
    section = RewardSection(**({"path": str(path), "bind": "127.0.0.1:0", "device": "cpu"} | settings))
    registry = CollectorRegistry()
    scorer = RewardScorer(section.path, section)
    async with ModelServer("reward", section, ObserveSection(), registry=registry) as server:
        batcher = MicroBatcher(
            scorer.score, section.batching, batcher_metrics=metrics.Batcher(registry), field_name="items"
        )
        async with batcher:
            bounds = Bounds(section.stream_max_requests, section.max_message_bytes)
            servicer = RewardServicer(LocalScoring(scorer, batcher), bounds)
            address = await server.start(servicer.add_to, [SERVICE_NAME])
            server.set_ready(True)
            yield World(address, server, scorer, batcher, registry)
            # The gRPC server goes before its batcher, as in the process.
            await server.drain()
