"""`python -m trainer.ppo --config run.toml`: connects the queue and the weight store, and trains."""

from __future__ import annotations

import sys

from fairlead.config import RunConfig
from fairlead.metrics import TrainerMetrics
from fairlead.nn.loading import require_determinism
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.transports.rollouts.run_claim import RunClaim, RunOwner
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from trainer import stage
from trainer.checkpoint import CheckpointStore
from trainer.distributed.group import Group
from trainer.ppo import orders
from trainer.ppo.queue_sampler import QueueSampler
from trainer.ppo.retry_queue import QueueRetry
from trainer.ppo.train import PpoTrainer, report_waiting


def body(config: RunConfig, metrics: TrainerMetrics, group: Group) -> None:
    """Connect the queue and the weight store, and train; on another rank than the first, follow it."""
    if config.deterministic:
        require_determinism()
    if not group.is_first:
        orders.follow(config, group)
        return
    retry = QueueRetry(config.queue, lambda what: report_waiting(config, what))
    queue = retry.call(
        lambda: RedisTrainerQueue.connect(config.queue, run=config.name, on_error=metrics.count_queue_error)
    )
    sampled = RedisTrainerQueue(config.queue, run=config.name, on_error=metrics.count_queue_error)
    try:
        store = FilesystemWeightStore(config.weights_path)
        claim = RunClaim(config.queue, run=config.name, owner=RunOwner.of(config.folder))
        retry.call(claim.take)
        with claim, QueueSampler(sampled, metrics):
            trainer = PpoTrainer(config, queue=queue, store=store, metrics=metrics, group=group)
            trainer.run()
            trainer.close()
    finally:
        queue.close()


def forget(config: RunConfig) -> None:
    """Delete the checkpoints of a finished run."""
    CheckpointStore(config.folder.checkpoints).forget()


if __name__ == "__main__":
    sys.exit(stage.run("ppo", body, new_metrics=TrainerMetrics, forget=forget))
