"""Faults that only a real Redis has: settings, restarts, unreadable entries, permissions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from fairlead.codec import SCHEMA_VERSION
from fairlead.config.infrastructure import QueueSection
from fairlead.errors import (
    ConfigError,
    CorruptData,
    CorruptOutcome,
    InvalidInput,
    QueueMisconfigured,
    QueueUnavailable,
    SchemaTooNew,
)
from fairlead.local import valkey
from fairlead.local.valkey import ValkeyServer
from fairlead.transports.rollouts.redis_connection import GROUP, Keys, check_server
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.transports.rollouts.redis_worker import RedisWorkerQueue
from fairlead.types import DeadLetter, PromptTask, SamplingParams, WeightVersion
from fairlead.v1 import rollout_pb2

LETTER = DeadLetter("reward_not_finite", "nan")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with valkey.running(tmp_path_factory.mktemp("valkey")) as started:
        yield started


class Run:
    """A run's queue, with raw access to Redis."""

    def __init__(self, server: ValkeyServer, name: str) -> None:
        self.section = QueueSection(redis_url=server.url, lease_seconds=0.1)
        self.name, self.keys = name, Keys(name)
        self.raw = redis.Redis.from_url(server.url, protocol=2)
        self.letters: list[DeadLetter] = []
        self.opened: list[RedisTrainerQueue | RedisWorkerQueue] = []

    def trainer(self) -> RedisTrainerQueue:
        queue = RedisTrainerQueue.connect(self.section, run=self.name)
        queue.take_fence(queue.known_incarnation() + 1)
        self.opened.append(queue)
        return queue

    async def worker(self, consumer: str = "w") -> RedisWorkerQueue:
        queue = await RedisWorkerQueue.connect(
            self.section, run=self.name, consumer=consumer, on_dead_letter=self.letters.append
        )
        self.opened.append(queue)
        return queue


@pytest.fixture
async def run(server: ValkeyServer, request: pytest.FixtureRequest) -> AsyncIterator[Run]:
    run = Run(server, request.node.name)
    yield run
    for queue in run.opened:
        if isinstance(queue, RedisWorkerQueue):
            await queue.close()
        else:
            queue.close()
    run.raw.close()


def task(task_id: int) -> PromptTask:
    return PromptTask(task_id, (1, 2), "hello", SamplingParams(seed=task_id), WeightVersion(1, 0))


def replace_prompt(run: Run, **fields: bytes) -> str:
    """Overwrite fields of the newest prompt entry, as a bug or a newer version would."""
    [(entry_id, found)] = run.raw.xrevrange(run.keys.prompts, count=1)
    found.update({name.encode(): value for name, value in fields.items()})
    run.raw.delete(run.keys.prompts)
    run.raw.xadd(run.keys.prompts, found, id=entry_id)
    return entry_id.decode()


async def test_undecodable_prompt_is_dead_lettered(run: Run) -> None:
    trainer, worker = run.trainer(), await run.worker()
    trainer.dispatch([task(7)])
    replace_prompt(run, prompt=b"\xff\xff not protobuf")
    assert list(await worker.claim(count=5, block_seconds=0)) == []
    [entry] = trainer.read(after="0", count=5, block_seconds=0)
    assert (entry.outcome.task.task_id, entry.outcome.result) == (7, run.letters[0])
    assert run.letters[0].reason == "undecodable_task"
    assert trainer.stats().in_flight == 0


async def test_prompt_of_another_task_is_dead_lettered(run: Run) -> None:
    trainer, worker = run.trainer(), await run.worker()
    trainer.dispatch([task(7), task(8)])
    entries = run.raw.xrange(run.keys.prompts)
    run.raw.delete(run.keys.prompts)
    for (entry_id, fields), (_, other) in zip(entries, reversed(entries), strict=True):
        run.raw.xadd(run.keys.prompts, fields | {b"prompt": other[b"prompt"]}, id=entry_id)
    assert list(await worker.claim(count=5, block_seconds=0)) == []
    assert {letter.reason for letter in run.letters} == {"undecodable_task"}
    assert [entry.outcome.task.task_id for entry in trainer.read(after="0", count=5, block_seconds=0)] == [
        7,
        8,
    ]


async def test_entry_without_fields_is_dropped_and_its_task_missing(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, worker = run.trainer(), await run.worker()
    trainer.dispatch([task(7)])
    [(entry_id, _)] = run.raw.xrange(run.keys.prompts)
    run.raw.delete(run.keys.prompts)
    run.raw.xadd(run.keys.prompts, {"something": "else"}, id=entry_id)
    assert list(await worker.claim(count=5, block_seconds=0)) == []
    assert f"dropped prompt entry {entry_id.decode()}: its fields cannot be read" in caplog.text
    snapshot = trainer.snapshot()
    assert snapshot.tasks_present() == set()
    assert trainer.stats().in_flight == 0


async def test_prompt_of_newer_schema_is_given_back(run: Run) -> None:
    trainer, worker = run.trainer(), await run.worker()
    trainer.dispatch([task(7)])
    newer = rollout_pb2.PromptTask(schema_version=SCHEMA_VERSION + 1, task_id=7).SerializeToString()
    replace_prompt(run, prompt=newer)
    for _ in range(2):
        with pytest.raises(
            SchemaTooNew, match=r"prompt task has schema version \d+; this fairlead reads up to"
        ):
            await worker.claim(count=5, block_seconds=0)
    assert trainer.snapshot().tasks_under_way() == {7}
    [pending] = run.raw.xpending_range(run.keys.prompts, GROUP, "-", "+", 10)
    assert (pending["consumer"], pending["times_delivered"]) == (b"returned", 0)


async def test_undecodable_outcome_raises_after_earlier_ones_were_read(run: Run) -> None:
    trainer, worker = run.trainer(), await run.worker()
    trainer.dispatch([task(0), task(1), task(2)])
    for claim in await worker.claim(count=3, block_seconds=1):
        await worker.finish(claim, LETTER)
    entries = run.raw.xrange(run.keys.rollouts)
    run.raw.delete(run.keys.rollouts)
    for number, (entry_id, fields) in enumerate(entries):
        damage = {b"outcome": b"\xff"} if number == 1 else {}
        run.raw.xadd(run.keys.rollouts, fields | damage, id=entry_id)
    [first] = trainer.read(after="0", count=5, block_seconds=0)
    with pytest.raises(CorruptOutcome, match="not an outcome") as raised:
        trainer.read(after=first.entry_id, count=5, block_seconds=0)
    assert raised.value.entry_id == entries[1][0].decode()
    trainer.delete([raised.value.entry_id])
    [third] = trainer.read(after=first.entry_id, count=5, block_seconds=0)
    assert third.outcome.task.task_id == 2


async def test_lag_of_the_group_stays_known(run: Run) -> None:
    """An autoscaler that reads lag and pending must see every task, through resends and acknowledgements."""
    trainer, worker = run.trainer(), await run.worker()
    trainer.dispatch([task(number) for number in range(10)])
    trainer.dispatch([task(0)])

    def seen() -> tuple[int, int]:
        [group] = run.raw.xinfo_groups(run.keys.prompts)
        return group["lag"], group["pending"]

    assert seen() == (11, 0)
    claims = await worker.claim(count=4, block_seconds=0)
    assert seen() == (6, 4)
    for claim in claims:
        await worker.finish(claim, LETTER)
    assert seen() == (6, 0)
    assert run.raw.xlen(run.keys.prompts) == 7


async def test_many_tasks_end_at_once(run: Run) -> None:
    run.trainer().dispatch([task(number) for number in range(200)])
    worker = await run.worker()
    claims = await worker.claim(count=200, block_seconds=1.0)
    assert await asyncio.gather(*(worker.finish(claim, LETTER) for claim in claims)) == [True] * 200


async def test_consumer_is_removed_only_if_it_holds_nothing(run: Run) -> None:
    trainer = run.trainer()
    trainer.dispatch([task(0)])

    def consumers() -> set[bytes]:
        return {info["name"] for info in run.raw.xinfo_consumers(run.keys.prompts, GROUP)}

    idle, busy = await run.worker("idle"), await run.worker("busy")
    [claim] = await busy.claim(count=1, block_seconds=0)
    assert list(await idle.claim(count=1, block_seconds=0)) == []
    await idle.close()
    await busy.close()
    assert consumers() == {b"busy"}
    assert trainer.stats().in_flight == 1
    successor = await run.worker("busy")
    assert await successor.finish(claim, LETTER)
    await successor.close()
    assert consumers() == set()


async def test_scripts_check_everything_before_writing(run: Run) -> None:
    trainer, worker = run.trainer(), await run.worker()
    trainer.dispatch([task(0)])
    [claim] = await worker.claim(count=1, block_seconds=0)
    run.raw.set(run.keys.rollouts, "not a stream")
    stored = run.raw.hgetall(run.keys.outstanding)
    with pytest.raises(CorruptData, match="WRONGTYPE"):
        await worker.finish(claim, LETTER)
    assert run.raw.hgetall(run.keys.outstanding) == stored
    assert run.raw.xpending(run.keys.prompts, GROUP)["pending"] == 1
    run.raw.delete(run.keys.rollouts)
    with pytest.raises(redis.ResponseError, match="INVALID task"):
        trainer.dispatch([task(1), task(-1)])
    assert trainer.snapshot().tasks_under_way() == {0}
    assert await worker.finish(claim, LETTER)


async def test_writer_takes_a_lost_fence_again(run: Run) -> None:
    trainer = run.trainer()
    run.raw.delete(run.keys.fence)
    trainer.dispatch([task(0)])
    assert trainer.known_incarnation() == 1


async def test_worker_name_returned_is_refused(run: Run) -> None:
    with pytest.raises(InvalidInput, match="'returned'"):
        await run.worker("returned")


async def test_full_redis_is_reported_and_can_be_emptied(tmp_path: Path) -> None:
    with valkey.running(tmp_path) as server:
        run = Run(server, "full")
        trainer, worker = run.trainer(), await run.worker()
        trainer.dispatch([task(0), task(1)])
        claims = await worker.claim(count=2, block_seconds=0)
        await worker.finish(claims[0], LETTER)
        run.raw.config_set("maxmemory", 1)
        with pytest.raises(QueueUnavailable, match="is full .* raise its maxmemory"):
            await worker.finish(claims[1], LETTER)
        with pytest.raises(QueueUnavailable, match="is full"):
            trainer.dispatch([task(2)])
        trainer.delete(trainer.snapshot().outcome_tasks())
        assert trainer.snapshot().outcome_tasks() == {}
        run.raw.config_set("maxmemory", 0)
        assert await worker.finish(claims[1], LETTER)
        await worker.close()
        trainer.close()
        run.raw.close()


async def test_both_sides_continue_after_a_restart(tmp_path: Path) -> None:
    server = valkey.prepare(tmp_path)
    run = Run(server, "restarted")
    with valkey.start(server):
        trainer, worker = run.trainer(), await run.worker()
        trainer.dispatch([task(0), task(1)])
        [claim] = await worker.claim(count=1, block_seconds=0)
    with pytest.raises(QueueUnavailable, match=f"127.0.0.1:{server.port} does not answer"):
        await worker.finish(claim, LETTER)
    with pytest.raises(QueueUnavailable, match="check that it runs"):
        trainer.snapshot()
    with valkey.start(server):
        assert await worker.finish(claim, LETTER)
        assert trainer.snapshot().tasks_under_way() == {1}
        [entry] = trainer.read(after="0", count=5, block_seconds=0)
        assert entry.outcome.result == LETTER
        [other] = await worker.claim(count=5, block_seconds=5)
        assert other.task == task(1)
    # Restarted between two calls: the trainer still gets one error, because data may be lost.
    with valkey.start(server):
        with pytest.raises(QueueUnavailable, match="lost"):
            trainer.snapshot()
        assert trainer.snapshot().tasks_under_way() == {1}
        run.raw.xgroup_destroy(run.keys.prompts, GROUP)
        run.raw.delete(run.keys.prompts)
        trainer.dispatch([task(1)])
        with pytest.raises(QueueUnavailable, match="closed by server"):
            await worker.claim(count=5, block_seconds=5)
        [again] = await worker.claim(count=5, block_seconds=5)
        assert (again.task, again.sending.number) == (task(1), 2)
        await worker.close()
        trainer.close()
        run.raw.close()


async def test_eviction_policy_is_refused(tmp_path: Path) -> None:
    with valkey.running(tmp_path) as server:
        raw = redis.Redis.from_url(server.url)
        raw.config_set("maxmemory-policy", "allkeys-lru")
        section = QueueSection(redis_url=server.url)
        expected = "maxmemory-policy allkeys-lru, .* set it to noeviction"
        with pytest.raises(QueueMisconfigured, match=expected):
            RedisTrainerQueue.connect(section, run="r")
        with pytest.raises(QueueMisconfigured, match=expected):
            await RedisWorkerQueue.connect(section, run="r", consumer="w")
        raw.close()


async def test_unreachable_server_is_named_without_password() -> None:
    for section in (
        QueueSection(redis_url="redis://user:secret@127.0.0.1:1/0"),
        QueueSection(redis_url="redis://127.0.0.1:1", redis_password=SecretStr("secret")),
    ):
        with pytest.raises(QueueUnavailable) as trainers:
            RedisTrainerQueue.connect(section, run="r")
        with pytest.raises(QueueUnavailable) as workers:
            await RedisWorkerQueue.connect(section, run="r", consumer="w")
        for raised in (trainers, workers):
            message = str(raised.value)
            assert message.startswith("Redis at 127.0.0.1:1 does not answer (")
            assert message.endswith("check that it runs and that queue.redis_url is right")
            assert "secret" not in message


async def test_password_outside_the_url(server: ValkeyServer) -> None:
    password = server.url.split(":")[2].partition("@")[0]
    url = f"redis://127.0.0.1:{server.port}"
    queue = RedisTrainerQueue.connect(
        QueueSection(redis_url=url, redis_password=SecretStr(password)), run="r"
    )
    assert queue.known_incarnation() == 0
    queue.close()
    with pytest.raises(QueueMisconfigured, match="FAIRLEAD_QUEUE__REDIS_PASSWORD"):
        RedisTrainerQueue.connect(QueueSection(redis_url=url, redis_password=SecretStr("wrong")), run="r")
    with pytest.raises(QueueMisconfigured, match="rejects the credentials"):
        await RedisWorkerQueue.connect(QueueSection(redis_url=url), run="r", consumer="w")


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://user:secret@host", "redis://host:port"])
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"queue\.redis_url: got .* allowed: redis://HOST:PORT") as raised:
        RedisTrainerQueue.connect(QueueSection.model_construct(redis_url=url), run="r")
    assert "secret" not in str(raised.value)


def test_check_server_rejects_old_versions_and_logs_durability(caplog: pytest.LogCaptureFixture) -> None:
    fine = {"redis_version": "7.2.4", "maxmemory_policy": "noeviction", "aof_enabled": 1}
    with pytest.raises(QueueMisconfigured, match="version 6.2.1: use Redis 7 or newer"):
        check_server(fine | {"redis_version": "6.2.1"}, {"appendfsync": "always"}, where="h:1")
    with caplog.at_level(logging.INFO):
        check_server(fine, {"appendfsync": "everysec"}, where="h:1")
        check_server(fine | {"aof_enabled": 0}, {"appendfsync": "everysec"}, where="h:2")
        check_server(fine, {}, where="h:3")
    messages = [record.getMessage() for record in caplog.records]
    assert "about the last second" in messages[0]
    assert "has no append-only file" in messages[1]
    assert "its appendfsync setting cannot be read" in messages[2]
