"""Whole runs of real processes whose Redis is full or loses its newest writes, whose files are damaged."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from fairlead.local import valkey
from fairlead.types import WeightVersion
from tests.integration.ppo_run import Started, check, make, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Started]:
    """A run of many updates that is at work."""
    file = make(tmp_path, updates=60, max_staleness=1)
    with started(file, "--set", "policy.replicas=2") as running:
        running.until(lambda: running.step() >= 5)
        yield running


def goes_on_to_its_end(run: Started) -> str:
    """Every task counts once; gives what the supervisor said."""
    code, said = run.finish(seconds=240)
    assert code == 0, said + run.words()
    check(run.folder)
    return said


@contextmanager
def unsupervised(run: Started) -> Iterator[None]:
    """Nothing that dies meanwhile is started again before the end."""
    os.kill(run.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(run.process.pid, signal.SIGCONT)


def kill(run: Started, name: str) -> None:
    """Whoever looks finds it dead: its parent has not collected it yet."""
    process = psutil.Process(run.pids()[name])
    process.kill()
    run.until(lambda: process.status() == psutil.STATUS_ZOMBIE)


def flip(path: Path) -> None:
    """One bit of its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def newest(folder: Path) -> Path:
    """The newest version there is: of checkpoints or of weights."""
    found = [path for path in folder.iterdir() if path.is_dir() and path.name[0].isdigit()]
    return max(found, key=lambda path: WeightVersion.parse(path.name))


def test_a_redis_that_is_full_for_a_while_costs_only_time(run: Started):
    with redis.Redis.from_url(valkey.last_url(run.folder.redis)) as client:
        client.config_set("maxmemory", 1)
        log = run.folder.log("rollout-worker-0")
        run.until(lambda: "is full" in log.read_text())
        stood = run.step()
        # A batch or two that were complete already; then nothing until there is room.
        run.until(lambda: client.info("errorstats").get("errorstat_OOM", {}).get("count", 0) >= 10)
        assert run.step() <= stood + 2
        client.config_set("maxmemory", 0)
    goes_on_to_its_end(run)


@pytest.mark.parametrize("kept", [0.0, 0.8])
def test_a_redis_that_comes_back_without_its_newest_writes_loses_nothing(run: Started, kept: float):
    with unsupervised(run):
        kill(run, "valkey")
        [file] = (run.folder.redis / "appendonlydir").glob("*.incr.aof")
        content = file.read_bytes()
        file.write_bytes(content[: int(kept * len(content))])
    assert "valkey died (killed by SIGKILL)" in goes_on_to_its_end(run)


@contextmanager
def replica(run: Started, folder: Path) -> Iterator[redis.Redis]:
    """A copy of the run's Redis that follows it."""
    url = valkey.last_url(run.folder.redis)
    password, _, address = url.partition("://")[2].removeprefix(":").partition("@")
    server = valkey.prepare(folder)
    with valkey.start(server), redis.Redis.from_url(server.url) as client:
        with redis.Redis.from_url(url) as primary:
            primary.config_set("repl-diskless-sync-delay", 0)
        client.config_set("masterauth", password)
        client.replicaof("127.0.0.1", int(address.partition("/")[0].rpartition(":")[2]))
        run.until(lambda: client.info("replication")["master_link_status"] == "up")
        run.until(lambda: not any(client.info("persistence")[key] for key in _REWRITING))
        yield client


_REWRITING = ("aof_rewrite_in_progress", "aof_rewrite_scheduled")


@pytest.mark.parametrize("behind", [False, True])
def test_a_replica_of_redis_takes_over(run: Started, tmp_path: Path, behind: bool):
    """At the same address, with what it has got: all but the last moment, or nothing of the last updates."""
    with replica(run, tmp_path / "replica") as client:
        if behind:
            client.replicaof("NO", "ONE")
        copied = run.step()
        run.until(lambda: run.step() >= copied + 5)
        with unsupervised(run):
            kill(run, "valkey")
            shutil.rmtree(run.folder.redis / "appendonlydir")
            shutil.copytree(tmp_path / "replica" / "appendonlydir", run.folder.redis / "appendonlydir")
    assert "valkey died (killed by SIGKILL)" in goes_on_to_its_end(run)


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_it_is_used(run: Started):
    with unsupervised(run):
        kill(run, "trainer")
        damaged = newest(run.folder.checkpoints)
        flip(damaged / "policy.safetensors")
    goes_on_to_its_end(run)
    said = run.folder.log("trainer").read_text()
    assert f"checkpoint {damaged.name} is damaged and is skipped" in said
    assert f"incarnation 2 begins at update {WeightVersion.parse(damaged.name).update - 2}" in said


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("model-00001.safetensors", "weights {} not loaded, none remain in use"),
        ("manifest.json", "skipping damaged weights {}"),
    ],
)
def test_damaged_newest_weights_are_told_and_not_used(run: Started, file: str, says: str):
    """A replica finds them while the trainer publishes nothing; with the next it goes on."""
    trainer = run.pids()["trainer"]
    os.kill(trainer, signal.SIGSTOP)
    log = run.folder.log("policy-1")
    before = len(log.read_text())
    with unsupervised(run):
        damaged = newest(run.folder.root / "weights")
        flip(damaged / file)
        kill(run, "policy-1")
    run.until(lambda: says.format(damaged.name) in log.read_text()[before:])
    os.kill(trainer, signal.SIGCONT)
    goes_on_to_its_end(run)
