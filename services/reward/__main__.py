"""Wires the reward service: configuration → model → batcher → server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fairlead import metrics
from fairlead.config import RunConfig
from services.runtime import process
from services.runtime.batching import MicroBatcher
from services.runtime.bulk import Bounds
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
    async with ModelServer("reward", config.reward, config.observe) as server:
        scorer = await server.load(lambda: _load(config))
        from services.reward.scoring import LocalScoring
        from services.reward.servicer import SERVICE_NAME, RewardServicer

        batcher = MicroBatcher(
            scorer.score, config.reward.batching, batcher_metrics=metrics.Batcher(), field_name="items"
        )
        async with batcher:
            scoring = LocalScoring(scorer, batcher)
            bounds = Bounds(config.reward.stream_max_requests, config.reward.max_message_bytes)
            await server.start(RewardServicer(scoring, bounds).add_to, [SERVICE_NAME])
            server.set_ready(True)
            await server.run_until_stopped()


if __name__ == "__main__":
    sys.exit(process.main("reward", run))
