"""The sampler beside the loop: sizes of a real Valkey with a limit; NaN while it does not answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from fairlead.config.infrastructure import QueueSection
from fairlead.local import valkey
from fairlead.metrics import TrainerMetrics
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from trainer.ppo.queue_sampler import QueueSampler


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sizes_are_sampled_and_unknown_while_redis_does_not_answer(tmp_path: Path):
    registry = CollectorRegistry()
    metrics = TrainerMetrics(registry)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"fairlead_trainer_queue_{name}", labels)

    server = valkey.prepare(tmp_path / "redis")
    with valkey.start(server) as process:
        section = QueueSection(redis_url=server.url)
        RedisTrainerQueue(section, run="r")._client.config_set("maxmemory", 1 << 30)
        queue = RedisTrainerQueue(section, run="r", on_error=metrics.count_queue_error)
        assert value("memory_bytes") is None
        with QueueSampler(queue, metrics, interval_seconds=0.05):
            wait_for(lambda: value("memory_limit_bytes") == 1 << 30)
            assert value("entries", what="waiting") == 0
            assert (value("memory_bytes") or 0) > 0
            process.kill()
            wait_for(lambda: math.isnan(value("memory_bytes") or 0.0))
            assert math.isnan(value("entries", what="outcomes") or 0.0)
    assert (registry.get_sample_value("fairlead_queue_errors_total", {"operation": "stats"}) or 0) >= 1
