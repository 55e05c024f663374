"""Worker processes with a real Valkey: killed, drained and disconnected workers lose no task."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from fairlead.config.infrastructure import QueueSection
from fairlead.errors import QueueUnavailable
from fairlead.local import valkey
from fairlead.local.valkey import ValkeyServer
from fairlead.transports.rollouts.redis_connection import GROUP, Keys
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.types import PromptTask, SamplingParams, WeightVersion
from tests.scripted_services import Script, answer_backwards, serving

RUN = "processes"
LEASE_SECONDS = 0.5


def task(task_id: int) -> PromptTask:
    return PromptTask(task_id, (1, 2, 3), "hello", SamplingParams(seed=task_id), WeightVersion(1, 0))


def trainer_of(server: ValkeyServer) -> RedisTrainerQueue:
    queue = RedisTrainerQueue.connect(QueueSection(redis_url=server.url), run=RUN)
    queue.take_fence(1)
    return queue


async def until(condition: Callable[[], bool], *, seconds: float = 40) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - a condition with a deadline
            await asyncio.sleep(0.02)


@asynccontextmanager
async def worker(
    tmp_path: Path, services: str, redis_url: str, *, name: str = "worker", metrics_port: int = -1
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Callable[[], str]]]:
    """Start a worker process; yield it and a function that returns its log."""
    addresses = json.dumps([services])
    environment = os.environ | {
        "FAIRLEAD_POLICY__ADDRESSES": addresses,
        "FAIRLEAD_REWARD__ADDRESSES": addresses,
        "FAIRLEAD_REFERENCE__ADDRESSES": addresses,
        "FAIRLEAD_QUEUE__REDIS_URL": redis_url,
        "FAIRLEAD_OBSERVE__METRICS_PORT": str(metrics_port),
    }
    settings = (f"name={RUN}", f"queue.lease_seconds={LEASE_SECONDS}", "rollout_worker.max_in_flight=4")
    flags = [part for setting in settings for part in ("--set", setting)]
    log = tmp_path / f"{name}.log"
    with log.open("wb") as stream:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.rollout_worker", *flags, env=environment, stderr=stream
        )
    try:
        yield process, lambda: log.read_text(errors="replace")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_tasks_are_finished_and_sigterm_drains(tmp_path: Path) -> None:
    hold, held = asyncio.Event(), asyncio.Event()

    async def generate(request, context):
        if request.request_id == f"{RUN}-10":
            held.set()
            await hold.wait()
        return await answer_backwards(request, context)

    port = free_port()

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30) as answer:
                return answer.status == 200
        except urllib.error.HTTPError as error:
            assert error.code == 503
            error.close()
            return False
        except OSError:
            return False

    script = Script(generate=generate)
    with valkey.running(tmp_path / "redis") as server:
        trainer = trainer_of(server)
        async with (
            serving(script),
            worker(tmp_path, script.address, server.url, metrics_port=port) as (process, log),
        ):
            await until(ready, seconds=60)
            trainer.dispatch([task(number) for number in range(11)])
            await until(lambda: trainer.stats().outcomes == 10)
            await asyncio.wait_for(held.wait(), 10)
            process.send_signal(signal.SIGTERM)
            await until(lambda: "draining" in log())
            trainer.dispatch([task(11)])
            hold.set()
            assert await asyncio.wait_for(process.wait(), 20) == 0
        entries = trainer.read(after="0", count=100, block_seconds=0)
        assert sorted(entry.outcome.task.task_id for entry in entries) == list(range(11))
        assert all(entry.outcome.rollouts for entry in entries)
        assert trainer.snapshot().tasks_under_way() == {11}
        raw = redis.Redis.from_url(server.url, protocol=2)
        assert {found["name"] for found in raw.xinfo_consumers(Keys(RUN).prompts, GROUP)} <= {b"returned"}
        raw.close()
        trainer.close()


async def test_killed_worker_and_restarted_redis_lose_no_task(tmp_path: Path) -> None:
    stuck = asyncio.Event()
    killed = False

    async def generate(request, context):
        if not killed:
            stuck.set()
            await asyncio.Event().wait()
        return await answer_backwards(request, context)

    script = Script(generate=generate)
    server = valkey.prepare(tmp_path / "redis")
    async with serving(script):
        with valkey.start(server) as database:
            trainer = trainer_of(server)
            trainer.dispatch([task(number) for number in range(30)])
            async with worker(tmp_path, script.address, server.url, name="killed") as (process, _):
                await asyncio.wait_for(stuck.wait(), 60)
                process.kill()
                await process.wait()
            killed = True
            async with worker(tmp_path, script.address, server.url, name="successor") as (successor, log):
                await until(lambda: trainer.stats().outcomes >= 10)
                database.kill()
                database.wait()
                with pytest.raises(QueueUnavailable):
                    trainer.snapshot()
                await until(lambda: "the queue does not answer" in log())
                with valkey.start(server):
                    await until(lambda: trainer.stats().outcomes == 30)
                    successor.send_signal(signal.SIGTERM)
                    assert await asyncio.wait_for(successor.wait(), 20) == 0
                    entries = trainer.read(after="0", count=100, block_seconds=0)
                    snapshot = trainer.snapshot()
                    trainer.close()
    assert sorted(entry.outcome.task.task_id for entry in entries) == list(range(30))
    assert snapshot.tasks_under_way() == frozenset()
    delivered = {entry.outcome.task.task_id: entry.outcome.deliveries for entry in entries}
    assert [delivered[number] for number in range(4)] == [2, 2, 2, 2], (
        "the tasks of the killed worker were claimed again"
    )


async def test_full_redis_loses_no_result(tmp_path: Path) -> None:
    """A worker keeps results and renews their leases until Redis has space, then returns each result once."""
    full, asked = asyncio.Event(), asyncio.Semaphore(0)

    async def generate(request, context):
        asked.release()
        await full.wait()
        return await answer_backwards(request, context)

    script = Script(generate=generate)
    with (
        valkey.running(tmp_path / "redis") as server,
        redis.Redis.from_url(server.url, protocol=2) as raw,
    ):

        def renewals() -> int:
            return raw.info("commandstats").get("cmdstat_xclaim", {}).get("calls", 0)

        trainer = trainer_of(server)
        trainer.dispatch([task(number) for number in range(4)])
        async with serving(script), worker(tmp_path, script.address, server.url) as (process, log):
            for _ in range(4):
                await asyncio.wait_for(asked.acquire(), 60)
            raw.config_set("maxmemory", 1)
            full.set()
            await until(lambda: "is full" in log())
            before = renewals()
            await until(
                lambda: renewals() >= before + 4 * 8
            )  # a lease is renewed every third of its duration
            assert trainer.stats().outcomes == 0
            raw.config_set("maxmemory", 0)
            await until(lambda: trainer.stats().outcomes == 4)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 20) == 0
        entries = trainer.read(after="0", count=100, block_seconds=0)
        assert sorted(entry.outcome.task.task_id for entry in entries) == [0, 1, 2, 3]
        assert [entry.outcome.deliveries for entry in entries] == [1, 1, 1, 1]
        trainer.close()


async def test_different_tokenizers_exit_with_2(tmp_path: Path) -> None:
    script = Script()
    script.fingerprints["reference"] = "two" * 20
    with valkey.running(tmp_path / "redis") as server:
        async with serving(script), worker(tmp_path, script.address, server.url) as (process, log):
            assert await asyncio.wait_for(process.wait(), 60) == 2
    last = log().strip().splitlines()[-1]
    assert last.startswith(
        "rollout_worker: reference.path: got 'models/reference with tokenizer twotwotwotwo'"
    )


async def test_eviction_policy_exits_with_2(tmp_path: Path) -> None:
    script = Script()
    with valkey.running(tmp_path / "redis") as server:
        raw = redis.Redis.from_url(server.url)
        raw.config_set("maxmemory-policy", "volatile-lru")
        raw.close()
        async with serving(script), worker(tmp_path, script.address, server.url) as (process, log):
            assert await asyncio.wait_for(process.wait(), 60) == 2
    assert "maxmemory-policy volatile-lru" in log().strip().splitlines()[-1]


async def test_wait_for_unreachable_queue_is_logged_without_password(tmp_path: Path) -> None:
    port = free_port()
    url = f"redis://:secret@127.0.0.1:{port}/0"
    async with worker(tmp_path, f"127.0.0.1:{free_port()}", url) as (process, log):
        await until(
            lambda: f"waiting for the queue, 0 s so far: Redis at 127.0.0.1:{port}" in log(), seconds=60
        )
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    assert "secret" not in log()
