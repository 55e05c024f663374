"""A snapshot of a queue shows everything and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from fairlead.config.infrastructure import QueueSection
from fairlead.errors import QueueUnavailable
from fairlead.local.valkey import ValkeyServer, running
from fairlead.transports.rollouts.base import Sending
from fairlead.transports.rollouts.redis_connection import Keys
from fairlead.transports.rollouts.redis_snapshot import take_snapshot
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.transports.rollouts.redis_worker import RedisWorkerQueue
from fairlead.types import DeadLetter, PromptTask, SamplingParams, WeightVersion


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with running(tmp_path_factory.mktemp("valkey")) as started:
        yield started


def task(number: int) -> PromptTask:
    return PromptTask(number, (1,), "p", SamplingParams(), WeightVersion(1, 0))


async def test_snapshot_shows_everything(server: ValkeyServer) -> None:
    section = QueueSection(redis_url=server.url)
    trainer = RedisTrainerQueue.connect(section, run="seen")
    worker = await RedisWorkerQueue.connect(section, run="seen", consumer="w")
    trainer.take_fence(4)
    trainer.dispatch([task(number) for number in range(5)])
    trainer.dispatch([task(4)])
    first, second, third = await worker.claim(count=3, block_seconds=0)
    await worker.finish(first, DeadLetter("r", "d"))
    await worker.fail(second, DeadLetter("r", "d"))

    found = take_snapshot(section, run="seen")
    assert found.incarnation == 4
    seen = {prompt.entry: prompt for prompt in found.prompts}
    failed, held = seen[second.entry_id], seen[third.entry_id]
    assert (failed.task, failed.worker, failed.deliveries, failed.is_open) == (1, "returned", 1, True)
    assert (held.task, held.worker, held.deliveries, held.is_new) == (2, "w", 1, False)
    assert held.sending == Sending(4, 1)
    assert 0 <= held.idle_seconds < 60 < failed.idle_seconds
    assert [(one.task, one.is_open) for one in found.prompts if one.is_new] == [
        (3, True),
        (4, False),
        (4, True),
    ]
    [outcome] = found.outcomes
    assert (outcome.task, outcome.sending, outcome.size_bytes > 10) == (0, Sending(4, 1), True)
    assert found.failures == {1: 1, 2: 0, 3: 0, 4: 0}
    assert found.tasks_present() == trainer.snapshot().tasks_present() == {0, 1, 2, 3, 4}
    await worker.close()
    trainer.close()


def test_snapshot_changes_nothing_even_without_keys(server: ValkeyServer) -> None:
    section = QueueSection(redis_url=server.url)
    found = take_snapshot(section, run="nobody")
    assert (found.incarnation, found.prompts, found.outcomes, found.tasks_present()) == (0, (), (), set())
    with redis.Redis.from_url(server.url) as raw:
        assert not raw.exists(*Keys("nobody").all())
        raw.xadd(Keys("foreign").prompts, {"something": "else"})
        before = raw.dump(Keys("foreign").prompts)
        [prompt] = take_snapshot(section, run="foreign").prompts
        assert (prompt.task, prompt.is_open, prompt.worker) == (-1, False, "")
        assert raw.dump(Keys("foreign").prompts) == before


def test_unreachable_server_is_named() -> None:
    with pytest.raises(QueueUnavailable, match="Redis at 127.0.0.1:1 does not answer"):
        take_snapshot(QueueSection(redis_url="redis://127.0.0.1:1"), run="r")
