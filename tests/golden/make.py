"""Write a golden run of this release: `python -m tests.golden.make v1`. Existing files are never overwritten.

The trainer stops after update 5, one after its newest checkpoint: the queue contains outcomes that a resume
can use, and four tasks are claimed by a worker that no longer exists.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import redis

from fairlead.local import valkey
from fairlead.transports.rollouts.base import Claim
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.types import TaskResult
from tests.golden.world import BATCH, LazyWorker, RedisBroker, configured, dump
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.ppo_world import World
from trainer.ppo.train import PpoTrainer

SMALL = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
LAST_ANSWERED = 5 * BATCH + BATCH // 2


class Killed(BaseException):
    """Ends the trainer between two updates."""


class Broker(RedisBroker):
    """Its worker stops finishing tasks in the second half of batch 5."""

    def worker(self, consumer: str) -> LazyWorker:
        return Worker(self._section, consumer)


class Worker(LazyWorker):
    """Finishes tasks up to a limit and keeps holding later ones."""

    async def finish(self, claim: Claim, result: TaskResult) -> bool:
        return claim.task.task_id < LAST_ANSWERED and await super().finish(claim, result)


def make(target: Path) -> None:
    """Run a trainer, end it, and save the folder and the queue."""
    target.mkdir()
    model = tiny_causal_lm(target / "model", seed=5, **SMALL)
    with tempfile.TemporaryDirectory() as scratch, valkey.running(Path(scratch) / "redis") as server:
        config = configured(Path(scratch) / "runs", model, server.url)

        def kill(done: int) -> None:
            if done == 5:
                raise Killed

        world = World(model, config.weights_path, lambda answer: float(answer.count(7)), Broker(config.queue))
        world.dead = {3}
        with closing(RedisTrainerQueue.connect(config.queue, run=config.name)) as queue, world:
            with suppress(Killed):
                PpoTrainer(config, queue=queue, store=world.store).run(on_update=kill)
            with redis.Redis.from_url(server.url) as client:
                content = dump(client)
        (target / "queue.json").write_text(json.dumps(content, indent=1) + "\n")
        shutil.copytree(config.folder.root, target / "run")
    for name in ("progress.json", "phases.jsonl", "samples_ppo.jsonl"):
        (target / "run" / name).unlink(missing_ok=True)
    claim = target / "run" / "checkpoints" / "incarnation-1.json"
    claim.write_text(json.dumps(json.loads(claim.read_text()) | {"host": "golden", "pid": 1}))


if __name__ == "__main__":
    make(Path(__file__).parent / sys.argv[1])
