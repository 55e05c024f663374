"""The run of the golden folder: its settings, and its queue as bytes in and out of a real Valkey."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from fairlead.config import RunConfig, load
from fairlead.config.infrastructure import QueueSection
from fairlead.transports.rollouts.base import Claim
from fairlead.transports.rollouts.redis_connection import GROUP, Keys
from fairlead.transports.rollouts.redis_worker import RedisWorkerQueue
from fairlead.types import TaskResult

NAME = "golden"
UPDATES, BATCH = 6, 8
KEYS = Keys(NAME)


def configured(runs: Path, model: Path, url: str) -> RunConfig:
    """Return the settings of the run."""
    prompts = "".join(json.dumps({"prompt": f"w{n} w{n + 1}"}) + "\n" for n in range(20))
    runs.mkdir(parents=True, exist_ok=True)
    (runs / "prompts.jsonl").write_text(prompts)
    return load(
        overrides={
            "name": NAME,
            "runs": str(runs),
            "base": str(runs),
            "data.prompts": "prompts.jsonl",
            "policy.path": str(model),
            "ppo.updates": UPDATES,
            "ppo.batch_size": BATCH,
            "ppo.mini_batch_size": BATCH,
            "ppo.max_staleness": 1,
            "ppo.device": "cpu",
            "ppo.critic_init": "policy",
            "ppo.missing_eos_penalty": 0.0,
            "sampling.max_new_tokens": 4,
            "checkpoint.every_updates": 2,
            "queue.redis_url": url,
            "queue.stall_seconds": 0.3,
            "queue.give_up_seconds": 20,
            "observe.tensorboard": False,
        }
    )


class RedisBroker:
    """A broker on Redis, for `tests.unit.trainer.ppo.ppo_world.World`."""

    def __init__(self, section: QueueSection) -> None:
        self._section = section

    def worker(self, consumer: str) -> LazyWorker:
        return LazyWorker(self._section, consumer)


class LazyWorker:
    """A worker's queue that connects at its first call, in the event loop of that call."""

    def __init__(self, section: QueueSection, consumer: str) -> None:
        self._section, self._consumer = section, consumer
        self._queue: RedisWorkerQueue | None = None

    async def claim(self, *, count: int, block_seconds: float) -> Sequence[Claim]:
        if self._queue is None:
            self._queue = await RedisWorkerQueue.connect(self._section, run=NAME, consumer=self._consumer)
        return await self._queue.claim(count=count, block_seconds=block_seconds)

    async def finish(self, claim: Claim, result: TaskResult) -> bool:
        assert self._queue is not None
        return await self._queue.finish(claim, result)

    async def close(self) -> None:
        if self._queue is not None:
            await self._queue.close()


def dump(client: redis.Redis) -> dict[str, Any]:
    """Return the content of the run's keys, bytes as hexadecimal."""

    def entries(stream: str) -> list[list[object]]:
        return [
            [entry.decode(), {name.decode(): value.hex() for name, value in fields.items()}]
            for entry, fields in client.xrange(stream)
        ]

    [group] = client.xinfo_groups(KEYS.prompts)
    pending = client.xpending_range(KEYS.prompts, GROUP, "-", "+", 1000)
    return {
        "prompts": entries(KEYS.prompts),
        "rollouts": entries(KEYS.rollouts),
        "outstanding": {k.decode(): v.decode() for k, v in client.hgetall(KEYS.outstanding).items()},
        "fence": client.get(KEYS.fence).decode(),
        "last_delivered": group["last-delivered-id"].decode(),
        "pending": [[one["message_id"].decode(), one["consumer"].decode()] for one in pending],
    }


def restore(client: redis.Redis, content: dict[str, Any]) -> None:
    """Restore the result of `dump`; all leases have expired."""
    for stream, name in ((KEYS.prompts, "prompts"), (KEYS.rollouts, "rollouts")):
        for entry, fields in content[name]:
            client.xadd(stream, {key: bytes.fromhex(value) for key, value in fields.items()}, id=entry)
    client.hset(KEYS.outstanding, mapping=content["outstanding"])
    client.set(KEYS.fence, content["fence"])
    client.xgroup_create(KEYS.prompts, GROUP, id=content["last_delivered"])
    for entry, consumer in content["pending"]:
        client.xclaim(KEYS.prompts, GROUP, consumer, 0, [entry], idle=10**7, force=True, justid=True)
