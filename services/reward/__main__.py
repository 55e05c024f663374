"""Wires the reward service: configuration → models, a function or a Triton server → servicers → server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from fairlead import metrics
from fairlead.clients.client import options_of
from fairlead.config import RunConfig
from fairlead.errors import ConfigError, install_command
from fairlead.nn import allocator
from services.reward.combined import CombinedScoring
from services.reward.dialects import Dialects
from services.reward.model_watcher import ModelWatcher, first
from services.reward.scoring import Scoring
from services.reward.swapping import SwappingScoring
from services.runtime import process
from services.runtime.process import Stopped
from services.runtime.server import ModelServer


async def run(config: RunConfig) -> None:
    """Serve until a signal, then drain."""
    config.reward.check_engine()
    async with ModelServer(
        "reward",
        config.reward,
        config.observe,
        limits=config.server_limits("reward"),
        keys=config.keys,
        tls=config.tls,
    ) as server:
        if config.reward.engine == "triton":
            await _serve_triton(config, server)
            return
        if config.reward.engine == "combined":
            async with _combined(config, server) as combined:
                await _start(config, server, combined)
                server.set_ready(True)
                await server.run_until_stopped(combined.failure)
            return
        async with _models(config, server) as scoring:
            await _start(config, server, scoring)
            server.set_ready(True)
            await server.run_until_stopped(scoring.failure)
        if scoring.still_loading:
            raise Stopped


async def _start(config: RunConfig, server: ModelServer, scoring: Scoring) -> None:
    dialects = Dialects(
        scoring,
        config.reward,
        requires_keys=bool(config.keys.file),
        ready=lambda: server.ready,
        limits=config.server_limits("reward"),
    )
    await server.start(dialects.add_to, dialects.names, dialects.wire_limits)


@asynccontextmanager
async def _models(config: RunConfig, server: ModelServer) -> AsyncIterator[SwappingScoring]:
    """Yield the scoring, with the watcher for newer models if it is configured."""
    section = config.reward
    if config.deterministic and section.engine == "local":
        await server.load(_require_determinism)
    function = _with_file(config, section.function)
    folder = function or section.path or str(config.folder.reward_model)
    scoring = await SwappingScoring.open(
        first(folder) if section.watch else folder,
        section,
        batcher_metrics=metrics.BatcherMetrics(),
        reward_metrics=metrics.RewardMetrics(),
        load=server.load,
    )
    async with scoring:
        if not section.watch:
            yield scoring
            return
        watcher = ModelWatcher(Path(folder), scoring, interval_seconds=section.watch_seconds)
        watching = asyncio.create_task(watcher.run())
        try:
            yield scoring
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def _combined(config: RunConfig, server: ModelServer) -> CombinedScoring:
    section = config.reward
    return CombinedScoring(
        section,
        batcher_metrics=metrics.BatcherMetrics(),
        reward_metrics=metrics.RewardMetrics(),
        load=server.load,
        options=options_of(config, timeout_seconds=section.timeout_seconds),
        resolve=partial(_with_file, config),
    )


def _with_file(config: RunConfig, function: str) -> str:
    """Return a function with the path of its file made absolute; empty if there is none."""
    place, _, name = function.rpartition(":")
    return f"{config.data_path(place)}:{name}" if place.endswith(".py") else function


def _require_determinism() -> None:
    from fairlead.nn.loading import require_determinism

    require_determinism()


async def _serve_triton(config: RunConfig, server: ModelServer) -> None:
    """Serve the model of a Triton server; ready while that server is."""
    section = config.reward
    if find_spec("tritonclient") is None:
        allowed = f"local, or with tritonclient: {install_command('triton')}"
        raise ConfigError("reward.engine", got="triton", allowed=allowed)
    from services.reward.triton import scoring as triton

    path = section.path or str(config.folder.reward_model)
    reader, served = await server.unless_stopped(triton.connect(path, section))
    async with triton.serving(reader, served, section, server.set_ready) as scoring:
        await _start(config, server, scoring)
        await server.run_until_stopped()


if __name__ == "__main__":
    allocator.keep_freed_memory()
    allocator.bound_kernels()
    sys.exit(process.main("reward", run))
