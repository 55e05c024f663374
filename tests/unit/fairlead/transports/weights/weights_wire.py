"""An origin and replicas that fetch from it, as real servers in this process, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from grpc import aio
from prometheus_client import CollectorRegistry
from safetensors.numpy import save_file

from fairlead import metrics
from fairlead.config.infrastructure import KeysSection, WeightsSection
from fairlead.transports.weights.base import LEASE_SECONDS, Ancestor
from fairlead.transports.weights.cache import WeightCache
from fairlead.transports.weights.direct_port import open_direct_port
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.transports.weights.grpc import GrpcWeightSource
from fairlead.transports.weights.sender import Sender
from fairlead.types import WeightVersion
from services.policy.relay_servicer import RelayServicer
from services.runtime.access.control import AccessControl
from services.runtime.edge import EdgeInterceptor
from services.runtime.health import Health
from services.weights.registry import Registry
from services.weights.servicer import WeightServicer

LINEAGE = (Ancestor(1, 0),)
CHUNK_BYTES = 64 << 10
"""Bytes of one message; small, so that every shard takes several."""
SETTINGS: dict[str, object] = {
    "chunk_bytes": CHUNK_BYTES,
    # Longer than a busy machine pauses: a source that is replaced too early is another result.
    "stall_seconds": 60.0,
}
"""Default settings of origins and replicas in tests."""


def publish_random(
    store: FilesystemWeightStore, version: WeightVersion, *, mebibytes: float = 9.0, shards: int = 2
) -> None:
    """Publish a version of several pieces, with different content for every version."""
    draw = np.random.default_rng(version.update)
    with store.publish(version, parent=None, lineage=LINEAGE) as folder:
        for number in range(shards):
            size = int(mebibytes * (1 << 20)) // shards
            values = draw.integers(0, 256, size, dtype=np.uint8)
            save_file({f"t{number}": values}, folder / f"model-{number}.safetensors")


@dataclass
class Node:
    """A server and its metrics."""

    address: str
    registry: CollectorRegistry
    server: aio.Server
    health: Health
    direct_port: int = 0

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    @property
    def fetched(self) -> tuple[float, float]:
        """Bytes fetched from the origin and from peers."""
        name = "fairlead_weights_fetched_bytes_total"
        return self.count(name, source="origin"), self.count(name, source="peer")

    async def die(self) -> None:
        await self.server.stop(None)


@asynccontextmanager
async def listening(servicer, registry: CollectorRegistry, *, port: int = 0) -> AsyncIterator[Node]:
    server = aio.server(
        interceptors=[
            EdgeInterceptor(
                metrics.ServerMetrics(registry),
                AccessControl(KeysSection(), access_metrics=metrics.AccessMetrics(registry)),
            )
        ],
        options=[("grpc.so_reuseport", 0)],
    )
    servicer.add_to(server)
    health = Health([])
    health.add_to(server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield Node(f"127.0.0.1:{bound}", registry, server, health)
    finally:
        health.close()
        await server.stop(None)


@asynccontextmanager
async def origin(store: FilesystemWeightStore, *, port: int = 0, **settings: object) -> AsyncIterator[Node]:
    """Run the weights service."""
    section = WeightsSection(**(SETTINGS | settings))
    registry = CollectorRegistry()
    known = Registry(fan_out=section.relay_fan_out, lease_seconds=LEASE_SECONDS)
    async with open_direct_port("127.0.0.1:0", section, encrypted=False) as direct_port:
        sender = Sender(
            store,
            section,
            metrics.WeightsMetrics(registry),
            direct=direct_port,
        )
        async with listening(WeightServicer(store, known, sender), registry, port=port) as node:
            node.health.set_serving(True)
            node.direct_port = direct_port.port if direct_port else 0
            yield node


@dataclass
class Fetcher:
    """A replica without an engine: its weight source, its cache, and the server that relays from it."""

    source: GrpcWeightSource
    cache: WeightCache
    node: Node

    async def fetch(self) -> Path:
        manifest = await self.source.latest()
        assert manifest is not None
        return await self.source.fetch(manifest)


@asynccontextmanager
async def replica(
    address: str, folder: Path, *, relays: bool = True, give_up_seconds: float = 20.0, **settings: object
) -> AsyncIterator[Fetcher]:
    """Run a policy replica that is never ready: its health is always NOT_SERVING."""
    section = WeightsSection(**(SETTINGS | {"addresses": (address,)} | settings))
    registry = CollectorRegistry()
    weights_metrics = metrics.WeightsMetrics(registry)
    with WeightCache(folder) as cache:
        source = GrpcWeightSource(section, cache, weights_metrics, give_up_seconds=give_up_seconds)
        try:
            async with (
                open_direct_port("127.0.0.1:0", section, encrypted=False) as direct_port,
                listening(
                    RelayServicer(Sender(cache, section, weights_metrics, direct=direct_port)),
                    registry,
                ) as node,
            ):
                if relays:
                    source.relay_at(node.address)
                yield Fetcher(source, cache, node)
        finally:
            await source.close()
