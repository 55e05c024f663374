"""Whole runs of real processes: Redis is full or loses its newest writes, files are damaged."""

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
    """A run of many updates, in progress."""
    file = make(tmp_path, updates=60, max_staleness=1)
    with started(file, "--set", "policy.replicas=2") as running:
        running.until(lambda: running.step() >= 5)
        yield running


def finishes(run: Started) -> str:
    """Wait for the end of the run; check that every task counts once. Return the output of the supervisor."""
    code, output = run.finish(seconds=240)
    assert code == 0, output + run.log_tails()
    check(run.folder)
    return output


@contextmanager
def unsupervised(run: Started) -> Iterator[None]:
    """Pause the supervisor, so that it restarts nothing inside the block."""
    os.kill(run.process.pid, signal.SIGSTOP)
    try:
        # A thread that has not stopped yet could still reap a process that is killed now.
        run.until(lambda: set(thread_states(run.process.pid)) == {"T"})
        yield
    finally:
        os.kill(run.process.pid, signal.SIGCONT)


def thread_states(pid: int) -> list[str]:
    """Return the state letter of each thread of a process, see proc_pid_stat(5)."""
    files = Path(f"/proc/{pid}/task").glob("*/stat")
    return [file.read_text().rpartition(")")[2].split()[0] for file in files]


def kill(run: Started, name: str) -> None:
    """Kill a process and wait until it is dead; its paused parent has not reaped it yet."""
    process = psutil.Process(run.pids()[name])
    process.kill()
    run.until(lambda: process.status() == psutil.STATUS_ZOMBIE)


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def newest(folder: Path) -> Path:
    """Return the newest checkpoint or weight version in a folder."""
    found = [path for path in folder.iterdir() if path.is_dir() and path.name[0].isdigit()]
    return max(found, key=lambda path: WeightVersion.parse(path.name))


def test_full_redis_only_delays_the_run(run: Started):
    with redis.Redis.from_url(valkey.last_url(run.folder.redis)) as client:
        client.config_set("maxmemory", 1)
        log = run.folder.log("rollout-worker-0")
        run.until(lambda: "is full" in log.read_text())
        before = run.step()
        # One or two batches were complete already; then no update until there is space.
        run.until(lambda: client.info("errorstats").get("errorstat_OOM", {}).get("count", 0) >= 10)
        assert run.step() <= before + 2
        client.config_set("maxmemory", 0)
    finishes(run)


@pytest.mark.parametrize("kept", [0.0, 0.8])
def test_redis_restart_without_newest_writes_loses_no_task(run: Started, kept: float):
    with unsupervised(run):
        kill(run, "valkey")
        [file] = (run.folder.redis / "appendonlydir").glob("*.incr.aof")
        content = file.read_bytes()
        file.write_bytes(content[: int(kept * len(content))])
    assert "valkey died (killed by SIGKILL)" in finishes(run)


@contextmanager
def replica(run: Started, folder: Path) -> Iterator[redis.Redis]:
    """A replica of the run's Redis."""
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


@pytest.mark.parametrize("lagging", [False, True])
def test_redis_replica_takes_over(run: Started, tmp_path: Path, lagging: bool):
    """At the same address, with its own data: all but the last moment, or nothing of the last updates."""
    with replica(run, tmp_path / "replica") as client:
        if lagging:
            client.replicaof("NO", "ONE")
        copied = run.step()
        run.until(lambda: run.step() >= copied + 5)
        with unsupervised(run):
            kill(run, "valkey")
            shutil.rmtree(run.folder.redis / "appendonlydir")
            shutil.copytree(tmp_path / "replica" / "appendonlydir", run.folder.redis / "appendonlydir")
    assert "valkey died (killed by SIGKILL)" in finishes(run)


def test_damaged_newest_checkpoint_is_skipped(run: Started):
    with unsupervised(run):
        kill(run, "trainer")
        damaged = newest(run.folder.checkpoints)
        flip(damaged / "policy.safetensors")
    finishes(run)
    output = run.folder.log("trainer").read_text()
    assert f"checkpoint {damaged.name} is damaged and is skipped" in output
    assert f"incarnation 2 begins at update {WeightVersion.parse(damaged.name).update - 2}" in output


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("model-00001.safetensors", "weights {} not loaded, none remain in use"),
        ("manifest.json", "skipping damaged weights {}"),
    ],
)
def test_damaged_newest_weights_are_not_used(run: Started, file: str, expected: str):
    """A replica starts while the trainer publishes nothing; it continues with the next version."""
    trainer = run.pids()["trainer"]
    os.kill(trainer, signal.SIGSTOP)
    log = run.folder.log("policy-1")
    before = len(log.read_text())
    with unsupervised(run):
        damaged = newest(run.folder.root / "weights")
        flip(damaged / file)
        kill(run, "policy-1")
    run.until(lambda: expected.format(damaged.name) in log.read_text()[before:])
    os.kill(trainer, signal.SIGCONT)
    finishes(run)
