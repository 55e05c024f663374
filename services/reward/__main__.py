"""Wires the reward service: configuration → model and batcher, or a Triton server → server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.errors import ConfigError
from services.runtime import process
from services.runtime.batching import MicroBatcher
from services.runtime.server import ModelServer

if TYPE_CHECKING:
    from services.reward.scorer import RewardScorer


def _load(config: RunConfig) -> RewardScorer:
    # torch takes seconds to import; until then the process already answers probes and signals.
    from fairlead.nn import determinism
    from services.reward.scorer import RewardScorer

    if config.deterministic:
        determinism.require()
    return RewardScorer(config.reward.path or str(config.folder.reward_model), config.reward)


async def run(config: RunConfig) -> None:
    """Serves until a signal, then drains."""
    async with ModelServer(
        "reward", config.reward, config.observe, keys=config.keys, tls=config.tls
    ) as server:
        if config.reward.engine == "triton":
            await _front(config, server)
            return
        scorer = await server.load(lambda: _load(config))
        from services.reward.dialects import Dialects
        from services.reward.scoring import LocalScoring

        batcher = MicroBatcher(
            scorer.score, config.reward.batching, batcher_metrics=metrics.Batcher(), field_name="items"
        )
        async with batcher:
            scoring = LocalScoring(scorer, batcher)
            dialects = Dialects(scoring, config.reward, ready=lambda: server.ready)
            await server.start(dialects.add_to, dialects.names)
            server.set_ready(True)
            await server.run_until_stopped()


async def _front(config: RunConfig, server: ModelServer) -> None:
    """Serves with the model of a Triton server, and is ready while that is."""
    from services.reward import triton_scorer
    from services.reward.dialects import Dialects

    section = config.reward
    if config.deterministic:
        raise ConfigError("reward.engine", got="triton", allowed="local, as the run is deterministic")
    path = section.path or str(config.folder.reward_model)
    reader, served = await server.unless_stopped(triton_scorer.connect(path, section))
    async with triton_scorer.serving(reader, served, section, server.set_ready) as scoring:
        dialects = Dialects(scoring, section, ready=lambda: server.ready)
        await server.start(dialects.add_to, dialects.names)
        await server.run_until_stopped()


if __name__ == "__main__":
    sys.exit(process.main("reward", run))
