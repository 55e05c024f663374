"""A real reward service in this process, for tests: server, model, batcher and every protocol."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config.base import TlsSection
from fairlead.config.infrastructure import KeysSection, ObserveSection
from fairlead.config.serving import RewardSection
from fairlead.rpc.call_types import call_type
from services.reward.dialects import Dialects
from services.reward.scorer import RewardScorer
from services.reward.servicer import SERVICE_NAME
from services.reward.swapping import SwappingScoring
from services.runtime.server import ModelServer


@dataclass
class World:
    """A running reward service."""

    address: str
    server: ModelServer
    scoring: SwappingScoring
    registry: CollectorRegistry

    @property
    def version(self) -> str:
        """Version of the current model."""
        return self.scoring.info.model_version

    @property
    def scorer(self) -> RewardScorer:
        """Scorer of the current model."""
        return self.scoring._current._scorer

    @property
    def queue_tokens(self) -> float:
        """Tokens waiting for the model."""
        return self.registry.get_sample_value("fairlead_batcher_queue_tokens") or 0.0

    def count(self, name: str, method: str, **labels: str) -> float:
        """Value of a counter of the server."""
        kind = call_type(SERVICE_NAME, method)
        known = {"grpc_type": kind, "grpc_service": SERVICE_NAME, "grpc_method": method}
        found = self.registry.get_sample_value(name, known | labels)
        return found or 0.0


class Threaded:
    """Services in an event loop of a separate thread, for blocking clients; a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._contexts: list[Any] = []

    def __enter__(self) -> Threaded:
        self._thread.start()
        return self

    def serve(self, context: Any) -> World:
        """Enter a context such as `reward_service(...)` in that thread."""
        self._contexts.append(context)
        world: World = asyncio.run_coroutine_threadsafe(context.__aenter__(), self._loop).result(60)
        return world

    def __exit__(self, *_: object) -> None:
        for context in self._contexts:
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@asynccontextmanager
async def reward_service(
    path,
    *,
    keys: KeysSection | None = None,
    tls: TlsSection | None = None,
    observe: ObserveSection | None = None,
    **settings,
) -> AsyncIterator[World]:
    section = RewardSection(**({"path": str(path), "bind": "127.0.0.1:0", "device": "cpu"} | settings))
    registry = CollectorRegistry()
    async with ModelServer(
        "reward", section, observe or ObserveSection(), keys=keys, tls=tls, registry=registry
    ) as server:
        scoring = await SwappingScoring.open(
            section.path,
            section,
            batcher_metrics=metrics.BatcherMetrics(registry),
            reward_metrics=metrics.RewardMetrics(registry),
        )
        async with scoring:
            dialects = Dialects(scoring, section, requires_keys=keys is not None, ready=lambda: server.ready)
            address = await server.start(dialects.add_to, dialects.names, dialects.wire_limits)
            server.set_ready(True)
            yield World(address, server, scoring, registry)
            # The gRPC server stops before its models, as in the process.
            await server.drain()
