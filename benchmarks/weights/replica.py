"""A policy replica without a model, for benchmarks: fetches when it reads a line, and relays."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from pathlib import Path

from fairlead import metrics
from fairlead.config.infrastructure import ObserveSection, WeightsSection
from fairlead.transports.weights.cache import WeightCache
from fairlead.transports.weights.direct_port import open_direct_port
from fairlead.transports.weights.grpc import GrpcWeightSource
from fairlead.transports.weights.sender import Sender
from fairlead.transports.weights.shard_servicer import SERVICE_NAME
from services.policy.relay_servicer import RelayServicer
from services.runtime.server import ModelServer


async def run(origin: str, cache: Path, bytes_per_second: int, *, direct_too: bool) -> None:
    """Answer `fetch` with the seconds that it took, and `start` with an empty cache."""
    section = WeightsSection(
        addresses=(origin,),
        bind="127.0.0.1:0",
        max_send_bytes_per_second=bytes_per_second,
        direct=direct_too,
    )
    weights_metrics = metrics.WeightsMetrics()
    async with (
        ModelServer("weights", section, ObserveSection(metrics_port=-1)) as server,
        open_direct_port(section.bind_address, section, encrypted=False) as direct_port,
    ):
        while line := await asyncio.to_thread(sys.stdin.readline):
            if line.strip() == "start":
                shutil.rmtree(cache, ignore_errors=True)
                held = WeightCache(cache, keep=2).__enter__()
                source = GrpcWeightSource(section, held, weights_metrics)
                # A replica that restarts under the same name would be directed to its earlier self.
                if bytes_per_second and not server.address:
                    servicer = RelayServicer(Sender(held, section, weights_metrics, direct=direct_port))
                    source.relay_at(await server.start(servicer.add_to, [SERVICE_NAME]))
                await source.latest()
                answer: dict[str, float] = {}
            else:
                manifest = await source.latest()
                assert manifest is not None
                start = time.perf_counter()
                await source.fetch(manifest)
                answer = {"seconds": time.perf_counter() - start}
                # Report that everything was fetched, or the origin waits for a slot that is not released.
                await source.latest()
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("origin")
    parser.add_argument("cache", type=Path)
    parser.add_argument("bytes_per_second", type=int)
    parser.add_argument("--grpc", action="store_true", help="no direct connections")
    options = parser.parse_args()
    asyncio.run(run(options.origin, options.cache, options.bytes_per_second, direct_too=not options.grpc))
