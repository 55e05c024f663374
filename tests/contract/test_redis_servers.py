"""Kinds of Redis servers, and runs that share one: a Unix socket works, a taken name does not."""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from rich.console import Console

from fairlead.config import RunFolder, load
from fairlead.config.infrastructure import QueueSection
from fairlead.errors import ConfigError, QueueMisconfigured, exit_code
from fairlead.local import valkey
from fairlead.local.run import run_stage
from fairlead.local.valkey import ValkeyServer
from fairlead.transports.rollouts import run_claim
from fairlead.transports.rollouts.redis_connection import Keys
from fairlead.transports.rollouts.redis_snapshot import take_snapshot
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.transports.rollouts.redis_worker import RedisWorkerQueue
from fairlead.transports.rollouts.run_claim import RunClaim, RunOwner, check_name
from fairlead.types import PromptTask, SamplingParams, WeightVersion


@contextmanager
def started(folder: Path, *options: str) -> Iterator[ValkeyServer]:
    prepared = valkey.prepare(folder)
    server = replace(prepared, command=(*prepared.command, *options))
    with valkey.start(server):
        yield server


async def claim_one(section: QueueSection, run: str) -> int:
    queue = await RedisWorkerQueue.connect(section, run=run, consumer="one")
    try:
        [claimed] = await queue.claim(count=1, block_seconds=5)
        return claimed.task.task_id
    finally:
        await queue.close()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_queue_over_a_unix_socket(tmp_path: Path) -> None:
    # The path of a socket has a limit of about a hundred characters.
    with tempfile.TemporaryDirectory() as short, started(tmp_path, "--unixsocket", f"{short}/s") as server:
        section = QueueSection(redis_url=f"unix://:{urlsplit(server.url).password}@{short}/s?db=3")
        trainer = RedisTrainerQueue.connect(section, run="unix")
        trainer.take_fence(1)
        trainer.dispatch([PromptTask(7, (1,), "p", SamplingParams(), WeightVersion(1, 0))])
        assert asyncio.run(claim_one(section, "unix")) == 7
        assert [one.task for one in take_snapshot(section, run="unix").prompts] == [7]
        trainer.close()
        with RunClaim(section, run="unix", owner=RunOwner("a", "/a", "h")) as claim:
            claim.take()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def connects(section: QueueSection, *, run: str) -> list[str]:
    """Return the messages with which both sides refuse the server."""
    messages = []
    for attempt in (
        lambda: RedisTrainerQueue.connect(section, run=run).close(),
        lambda: asyncio.run(claim_one(section, run)),
    ):
        with pytest.raises(QueueMisconfigured) as refused:
            attempt()
        assert exit_code(refused.value) == 2
        messages.append(str(refused.value))
    return messages


def test_cluster_whose_other_node_holds_the_run_is_refused(tmp_path: Path) -> None:
    cluster = ("--cluster-enabled", "yes", "--cluster-port")
    with (
        started(tmp_path / "a", *cluster, str(free_port())) as a,
        started(tmp_path / "b", *cluster, str(port := free_port())) as b,
        redis.Redis.from_url(a.url, protocol=2) as client,
        redis.Redis.from_url(b.url, protocol=2) as other,
    ):
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
        other.execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
        client.execute_command("CLUSTER MEET", "127.0.0.1", b.port, port)
        until(
            lambda: all(c.execute_command("CLUSTER INFO")["cluster_state"] == "ok" for c in (client, other))
        )
        here, there = (
            next(
                name
                for name in (f"run{n}" for n in range(99))
                if (int(client.execute_command("CLUSTER KEYSLOT", Keys(name).fence)) > 8191) == second
            )
            for second in (False, True)
        )
        section = QueueSection(redis_url=a.url)
        RedisTrainerQueue.connect(section, run=here).close()
        for message in connects(section, run=there):
            assert "is a node of a cluster" in message
            assert f"127.0.0.1:{b.port}" in message
            assert "set queue.redis_url to a single server" in message
        for message in connects(QueueSection(redis_url=a.url.replace("/0", "/99")), run=here):
            assert "does not have the database of queue.redis_url" in message


def test_sentinel_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sentinel.conf"
    file.write_text(f"port {(port := free_port())}\nbind 127.0.0.1\ndir {tmp_path}\n")
    process = subprocess.Popen(
        [valkey.find_server(), file, "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: listens(port))
        for message in connects(QueueSection(redis_url=f"redis://127.0.0.1:{port}"), run="x"):
            assert "is a Sentinel" in message
            assert "set queue.redis_url to the server that it names" in message
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def section(tmp_path: Path) -> Iterator[QueueSection]:
    with valkey.running(tmp_path / "redis") as server:
        yield QueueSection(redis_url=server.url)


def test_second_run_of_a_name_is_refused_and_names_the_first(
    tmp_path: Path, section: QueueSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_claim, "LEASE_SECONDS", 0.4)
    first, second = (RunFolder(tmp_path / name / "ours") for name in ("A", "B"))
    claim = RunClaim(section, run="ours", owner=RunOwner.of(first))
    claim.take()
    claim.take()
    overrides = {"runs": str(tmp_path / "B"), "name": "ours", "queue.redis_url": section.redis_url}
    with claim:
        time.sleep(1.0)  # longer than the lease: it is renewed
        for refused in (
            lambda: run_stage(load(overrides=overrides), "ppo", console=Console()),
            RunClaim(section, run="ours", owner=RunOwner.of(second)).take,
        ):
            with pytest.raises(ConfigError) as error:
                refused()
            assert exit_code(error.value) == 2
            message = str(error.value)
            assert message.startswith(f"name: got 'ours', allowed: another name than that of {first.root}, ")
            assert "queue.redis_url" in message
            assert str(urlsplit(section.redis_url).password) not in message
        # Another name, another database, and the same run again.
        check_name(section, run="theirs", folder=second)
        other = section.model_copy(update={"redis_url": re.sub("/0$", "/1", section.redis_url)})
        check_name(other, run="ours", folder=second)
        check_name(section, run="ours", folder=first)
    check_name(section, run="ours", folder=second)


def test_name_of_a_killed_run_is_free_after_its_lease(
    tmp_path: Path, section: QueueSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_claim, "LEASE_SECONDS", 0.2)
    RunClaim(section, run="ours", owner=RunOwner(secrets.token_hex(4), "/gone", "h")).take()
    second = RunClaim(section, run="ours", owner=RunOwner.of(RunFolder(tmp_path / "ours")))

    def free() -> bool:
        try:
            second.take()
        except ConfigError:
            return False
        return True

    assert not free()
    until(free)
    second.close()
