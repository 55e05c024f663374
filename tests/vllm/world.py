"""An engine on vLLM with a tiny model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.nn import adapters, loading
from fairlead.transports.weights.base import Adapter
from tests.engine_world import SLOTS, limits, model_info


@asynccontextmanager
async def serving(folder: Path, registry: CollectorRegistry | None = None, **sections: dict) -> AsyncIterator:
    """Run an engine on the model in a folder, whose weights are version 0-0."""
    from services.policy.vllm.engine import VllmEngine

    policy = {
        "engine": "vllm",
        "path": str(folder),
        "serve_initial": True,
        "max_slots": SLOTS,
        "vllm": {"kv_cache_memory_bytes": 64 << 20, "enforce_eager": True},
    }
    config = RunConfig(
        policy=policy | sections.get("policy", {}), ppo={"max_staleness": 1} | sections.get("ppo", {})
    )
    model = loading.causal_lm_without_weights(str(folder))
    adapter = None
    if config.ppo.lora.rank:
        adapters.add(model, config.ppo.lora, base=str(folder), field="ppo.lora", seed=0, dtype=torch.float32)
        adapter = Adapter(adapters.fingerprint(str(folder)), adapters.config(model))
    engine = VllmEngine(
        model,
        loading.load_tokenizer(str(folder)),
        model_info(folder, dtype=config.policy.dtype),
        config=config,
        limits=limits(max_staleness=config.ppo.max_staleness),
        policy_metrics=metrics.PolicyMetrics(registry or CollectorRegistry()),
        adapter=adapter,
    )
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.close)
