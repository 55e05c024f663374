"""`python -m trainer.ppo --config run.toml`."""

from __future__ import annotations

import sys

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.nn.loading import require_determinism
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from trainer import stage
from trainer.checkpoint import CheckpointStore
from trainer.ppo.patience import Patience
from trainer.ppo.train import PpoTrainer, announce


def body(config: RunConfig, gauges: metrics.TrainerMetrics) -> None:
    """Connects queue and weight store, and trains."""
    if config.deterministic:
        require_determinism()
    patience = Patience(config.queue, lambda what: announce(config, what))
    queue = patience.call(lambda: RedisTrainerQueue.connect(config.queue, run=config.name))
    try:
        store = FilesystemWeightStore(config.weights_path)
        PpoTrainer(config, queue=queue, store=store, gauges=gauges).run()
    finally:
        queue.close()


def forget(config: RunConfig) -> None:
    """Removes the checkpoints of a finished run."""
    CheckpointStore(config.folder.checkpoints).forget()


if __name__ == "__main__":
    sys.exit(stage.run("ppo", body, forget=forget))
