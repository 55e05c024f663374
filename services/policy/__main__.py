"""Wire the policy service: configuration → model → engine, weight store → watcher, servicer → server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from grpc import aio

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.nn import allocator
from fairlead.rpc.credentials import Credentials
from fairlead.transports.weights.base import Adapter, WeightSource
from fairlead.transports.weights.cache import WeightCache
from fairlead.transports.weights.direct_port import open_direct_port
from fairlead.transports.weights.filesystem import FilesystemWeightSource, FilesystemWeightStore
from fairlead.transports.weights.grpc import GrpcWeightSource
from fairlead.transports.weights.sender import Sender
from fairlead.transports.weights.shard_servicer import SERVICE_NAME as RELAY_NAME
from fairlead.types import ModelInfo, WeightVersion
from services.policy.relay_servicer import RelayServicer
from services.policy.weight_watcher import WeightWatcher
from services.runtime import process
from services.runtime.server import ModelServer

if TYPE_CHECKING:
    from fairlead.data.chat import Prompt
    from services.policy.engine import Engine

_WATCH_SECONDS = 0.2
"""Time between two polls of the weight store: short compared to an update, and cheap."""
_WILDCARDS = ("0.0.0.0", "[::]", "::")


def _load(
    config: RunConfig, policy_metrics: metrics.PolicyMetrics
) -> tuple[Engine, Callable[[Prompt], list[int]]]:
    # Imported here because torch takes seconds, during which the process already answers probes and signals.
    from fairlead.data.encoding import encode_prompt
    from fairlead.data.template import apply_settings
    from fairlead.nn import adapters, loading
    from fairlead.nn.linear import use_onednn
    from services.policy.front import EngineLimits
    from services.policy.requests import encode

    section = config.policy
    if config.deterministic:
        loading.require_determinism()
    loading.set_threads(section)
    path = section.path or str(config.folder.sft_model)
    uses_vllm = section.engine == "vllm"
    model = loading.causal_lm_without_weights(path) if uses_vllm else loading.load_causal_lm(path, section)
    tokenizer = loading.load_tokenizer(path)
    if section.path:
        apply_settings(tokenizer, config)
    loading.check_vocabulary(path, model, tokenizer)
    info = ModelInfo(
        model_id=path,
        tokenizer_fingerprint=loading.tokenizer_fingerprint(tokenizer),
        vocabulary_size=loading.vocabulary_size(model),
        max_sequence_tokens=loading.max_sequence_tokens(model, section.max_sequence_tokens),
        dtype=section.dtype,
    )
    adapter = None
    if config.ppo.lora.rank:
        adapters.add(model, config.ppo.lora, base=path, field="ppo.lora", seed=config.seed, dtype=model.dtype)
        adapter = Adapter(adapters.fingerprint(path), adapters.config(model))
    use_onednn(model)
    encode_prompt(tokenizer, "a")  # sets the tokenizer's padding and truncation before threads share it
    limits = EngineLimits(
        max_slots=section.max_slots,
        max_samples=section.max_samples,
        max_queue_tokens=section.max_queue_tokens,
        finish_before_swap=config.ppo.max_staleness == 0,
    )
    engine: Engine
    if uses_vllm:
        from services.policy.vllm.engine import VllmEngine

        engine = VllmEngine(
            model,
            tokenizer,
            info,
            config=config,
            limits=limits,
            policy_metrics=policy_metrics,
            adapter=adapter,
        )
    else:
        from services.policy.transformers_engine import TransformersEngine

        engine = TransformersEngine(
            model,
            tokenizer,
            info,
            limits=limits,
            policy_metrics=policy_metrics,
            section=section,
            initial=WeightVersion(0, 0) if section.serve_initial else None,
            adapter=adapter,
        )
    return engine, lambda prompt: encode(tokenizer, prompt)


async def run(config: RunConfig) -> None:
    """Serve until a signal, then drain."""
    async with (
        ModelServer(
            "policy",
            config.policy,
            config.observe,
            limits=config.server_limits("policy"),
            keys=config.keys,
            tls=config.tls,
        ) as server,
        _weights(config) as weights,
    ):
        policy_metrics = metrics.PolicyMetrics()
        engine, encode = await server.load(lambda: _load(config, policy_metrics))
        from services.policy.servicer import SERVICE_NAME, PolicyServicer, wire_limits

        watcher = WeightWatcher(
            weights.source,
            engine,
            policy_metrics,
            interval_seconds=_WATCH_SECONDS,
            on_loaded=lambda: server.set_ready(True),
        )
        servicer = PolicyServicer(engine, config.policy, encode=encode, on_newer_weights=watcher.kick)

        def add(to: aio.Server) -> None:
            servicer.add_to(to)
            if weights.relay is not None:
                weights.relay.add_to(to)

        try:
            names = [SERVICE_NAME, *([RELAY_NAME] if weights.relay else [])]
            limits = wire_limits(engine.model, max_text_bytes=config.policy.max_text_bytes)
            address = await server.start(add, names, limits)
            weights.announce(config.weights.relay_address or address)
            server.set_ready(engine.version is not None)
            await _until_stopped(server, engine, watcher)
        finally:
            await asyncio.to_thread(engine.close)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Where weights come from, and the relay that serves them to other replicas."""

    source: WeightSource
    grpc: GrpcWeightSource | None = None
    relay: RelayServicer | None = None

    def announce(self, address: str) -> None:
        """Report the address of the relay to the weights service, unless it is a wildcard address."""
        if self.grpc is not None and address.rpartition(":")[0] not in _WILDCARDS:
            self.grpc.relay_at(address)


@asynccontextmanager
async def _weights(config: RunConfig) -> AsyncIterator[_Weights]:
    section = config.weights
    if section.transport == "filesystem":
        yield _Weights(FilesystemWeightSource(FilesystemWeightStore(config.weights_path)))
        return
    bind = config.policy.bind_address
    name = f"policy-{bind.rpartition(':')[2]}"
    root = Path(section.cache) if section.cache else config.folder.weight_caches / name
    weights_metrics = metrics.WeightsMetrics()
    with WeightCache(root) as cache:
        credentials = partial(Credentials, tls=config.tls, allow_insecure=config.keys.allow_insecure)
        source = GrpcWeightSource(section, cache, weights_metrics, credentials=credentials)
        try:
            async with open_direct_port(bind, section, encrypted=config.tls.on) as direct_port:
                sender = Sender(cache, section, weights_metrics, direct=direct_port)
                yield _Weights(source, source, RelayServicer(sender))
        finally:
            await source.close()


async def _until_stopped(server: ModelServer, engine: Engine, watcher: WeightWatcher) -> None:
    """Serve until stopped; the watcher runs during the drain too, as requests may still wait for weights."""
    serving = asyncio.create_task(server.run_until_stopped())
    background = [asyncio.create_task(watcher.run()), asyncio.create_task(engine.wait_failed())]
    try:
        done, _ = await asyncio.wait([serving, *background], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (serving, *background):
            task.cancel()


if __name__ == "__main__":
    allocator.bound_kernels()
    sys.exit(process.main("policy", run))
