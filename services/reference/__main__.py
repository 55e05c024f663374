"""Wires the reference service: configuration → model → batcher → server."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.errors import ConfigError
from fairlead.nn import allocator
from services.batching.batcher import MicroBatcher
from services.runtime import process
from services.runtime.server import ModelServer

if TYPE_CHECKING:
    from services.reference.scorer import ReferenceScorer


def _load(config: RunConfig) -> ReferenceScorer:
    # Importing torch takes seconds; until then the process already answers probes and signals.
    from fairlead.nn.loading import require_determinism
    from services.reference.scorer import ReferenceScorer

    if config.deterministic:
        require_determinism()
    if config.reference.engine == "trainer":
        raise ConfigError("reference.engine", got="trainer", allowed="local or vllm, to start this service")
    temperature = config.sampling.temperature
    if config.reference.engine == "vllm" and config.evaluation.temperature not in (0, temperature):
        raise ConfigError(
            "evaluation.temperature",
            got=config.evaluation.temperature,
            allowed=f"0 or {temperature:g} (sampling.temperature), because reference.engine is 'vllm'",
        )
    path = config.reference.path or str(config.folder.sft_model)
    return ReferenceScorer(path, config.reference, temperature=temperature)


async def run(config: RunConfig) -> None:
    """Serve until a signal, then drain."""
    async with ModelServer(
        "reference",
        config.reference,
        config.observe,
        limits=config.server_limits("reference"),
        keys=config.keys,
        tls=config.tls,
    ) as server:
        scorer = await server.load(lambda: _load(config))
        from services.reference.servicer import SERVICE_NAME, ReferenceServicer, wire_limits

        batcher = MicroBatcher(
            scorer.logprobs,
            config.reference.batching,
            batcher_metrics=metrics.BatcherMetrics(),
            field_name="sequences",
        )
        try:
            async with batcher:
                servicer = ReferenceServicer(scorer, batcher)
                await server.start(servicer.add_to, [SERVICE_NAME], wire_limits(config.reference))
                server.set_ready(True)
                await server.run_until_stopped(scorer.failure)
        finally:
            await asyncio.to_thread(scorer.close)


if __name__ == "__main__":
    allocator.keep_freed_memory()
    allocator.bound_kernels()
    sys.exit(process.main("reference", run))
