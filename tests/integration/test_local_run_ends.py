"""The supervisor with small real processes: the order in which they end, and that none keeps running."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry

from fairlead.config import RunFolder
from fairlead.errors import ProcessFailed
from fairlead.local.process import State
from fairlead.local.restart_policy import RunOutcome
from fairlead.local.run_files import MARK, RunLock, read_pids, running_pids, write_pids
from fairlead.local.supervisor import Observed
from fairlead.metrics import SupervisorMetrics
from tests.integration.supervised import FOREVER, child, lines, process, run_folder, run_while, supervisor
from tests.metric_values import total
from tests.waiting import until

# Records SIGTERM and its end; takes `slow` seconds to drain.
DRAINS = """
    import signal, sys, time
    name, slow, notes = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    def note(what):
        with open(notes, "a") as file:
            file.write(f"{name} {what}\\n")
    def stop(*_):
        note("stopped")
        time.sleep(slow)
        note("ended")
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    note("up")
    while True:
        signal.pause()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with run_folder(tmp_path / "run") as made:
        yield made


async def test_processes_are_stopped_in_order(folder: RunFolder, tmp_path: Path):
    notes = tmp_path / "notes"
    ranks = {"valkey": 2, "policy-0": 1, "worker": 0, "trainer": 0}
    specs = [child(name, DRAINS, name, 0.2, notes, drain_rank=rank) for name, rank in ranks.items()]
    run = supervisor(folder, *specs)

    async def stop() -> None:
        await until(lambda: len(lines(notes)) == 4)
        run.stop(RunOutcome(130, "stopped"))

    assert await run_while(run, stop) == RunOutcome(130, "stopped")
    written = lines(notes)[4:]
    assert {line.split()[0] for line in written[:4]} == {"worker", "trainer"}
    assert written[4:] == ["policy-0 stopped", "policy-0 ended", "valkey stopped", "valkey ended"]
    assert read_pids(folder.processes) == {}


async def test_process_that_does_not_end_is_killed_with_its_children(folder: RunFolder, tmp_path: Path):
    notes = tmp_path / "notes"
    stubborn = """
        import pathlib, signal, subprocess, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path(sys.argv[1]).write_text(f"{below.pid}\\n")
        while True: signal.pause()
    """
    run = supervisor(folder, child("stubborn", stubborn, notes), drain_seconds=0.3)
    pids: list[int] = []

    async def stop() -> None:
        await until(lambda: lines(notes))
        pid = process(run, "stubborn").pid
        assert pid is not None
        pids.extend([pid, int(lines(notes)[0])])
        run.stop(RunOutcome(143, "stopped"))

    await run_while(run, stop)
    await until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


async def test_second_stop_kills_immediately(folder: RunFolder, tmp_path: Path):
    notes = tmp_path / "notes"
    run = supervisor(folder, child("slow", DRAINS, "slow", 3_600, notes), drain_seconds=3_600.0)

    async def stop_twice() -> None:
        await until(lambda: "slow up" in lines(notes))
        run.stop(RunOutcome(130, "stopped"))
        await until(lambda: "slow stopped" in lines(notes))
        run.stop(RunOutcome(1, "the first reason stays"))

    assert await run_while(run, stop_twice) == RunOutcome(130, "stopped")


async def test_processes_file_has_the_pids_of_live_processes(folder: RunFolder):
    run = supervisor(
        folder,
        child("a", FOREVER),
        child("b", FOREVER),
        child("c", "raise SystemExit(1)"),
        backoff_seconds=30,
    )

    async def compare_pids() -> None:
        await until(
            lambda: process(run, "c").state is State.BACKOFF and len(read_pids(folder.processes)) == 2
        )
        pids = json.loads(folder.processes.read_text())
        assert pids == {"a": process(run, "a").pid, "b": process(run, "b").pid}
        assert all(os.getpgid(pid) == pid for pid in pids.values())
        await until(lambda: FOREVER in psutil.Process(pids["a"]).cmdline())
        run.stop(RunOutcome(0, "seen"))

    await run_while(run, compare_pids)
    assert json.loads(folder.processes.read_text()) == {}


def test_stale_processes_are_ended_and_foreign_ones_are_not(folder: RunFolder):
    mark = {MARK: str(folder.root.absolute())}
    left = subprocess.Popen([sys.executable, "-c", FOREVER], env=os.environ | mark, start_new_session=True)
    stranger = subprocess.Popen([sys.executable, "-c", FOREVER], start_new_session=True)
    try:
        write_pids(folder.processes, {"trainer": left.pid, "reward-0": stranger.pid, "policy-0": 2**22 + 1})
        deadline = time.monotonic() + 20
        while not running_pids(folder.processes, mark=mark[MARK]) and time.monotonic() < deadline:
            time.sleep(0.01)
        outcome = asyncio.run(supervisor(folder, child("main", "", is_main=True)).run())
        assert outcome == RunOutcome(0, "main has finished")
        assert not psutil.pid_exists(left.pid)
        assert stranger.poll() is None
    finally:
        for started in (left, stranger):
            started.kill()
            started.wait()


def test_children_die_with_a_killed_supervisor(folder: RunFolder, tmp_path: Path):
    program = f"""
        import asyncio, os, pathlib, sys
        from fairlead.config import RunFolder
        from fairlead.config.infrastructure import LocalSection
        from fairlead.local.process import ProcessSpec
        from fairlead.local.supervisor import Supervisor
        specs = [ProcessSpec(name=name, command=(sys.executable, "-c", {FOREVER!r})) for name in "abc"]
        folder = RunFolder(pathlib.Path(sys.argv[1]))
        run = Supervisor(specs, local=LocalSection(), folder=folder, environment=dict(os.environ))
        asyncio.run(run.run())
    """
    started = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), str(folder.root)])
    try:
        deadline = time.monotonic() + 20
        alive: list[psutil.Process] = []
        # After the launcher, which itself checks that the supervisor is alive.
        while len(alive) < 3 or any("launch.py" in " ".join(one.cmdline()) for one in alive):
            assert time.monotonic() < deadline
            time.sleep(0.01)
            pids = running_pids(folder.processes, mark=str(folder.root)).values()
            alive = [psutil.Process(pid) for pid in pids]
        started.kill()
        started.wait()
        _, left = psutil.wait_procs(alive, timeout=10)
        assert left == []
    finally:
        started.kill()
        started.wait()


def test_second_supervisor_is_refused(folder: RunFolder):
    with RunLock(folder):
        with pytest.raises(ProcessFailed) as caught, RunLock(folder):
            pass
        assert str(caught.value) == (
            f"{folder.root}: another fairlead process (pid {os.getpid()}) is working on this run"
        )
    with RunLock(folder):
        pass


async def test_metrics_and_targets_follow_the_processes(folder: RunFolder):
    registry = CollectorRegistry()
    metrics = SupervisorMetrics(["a-0", "b"], registry)
    run = supervisor(
        folder,
        child("a-0", FOREVER, metrics="127.0.0.1:7001"),
        child("b", "raise SystemExit(1)", metrics="127.0.0.1:7002"),
        backoff_seconds=30,
        observed=Observed(metrics, address="127.0.0.1:7003", run="mine", scheme="https"),
    )

    def targets() -> dict[str, dict[str, object]]:
        if not folder.targets.exists():
            return {}
        return {entry["labels"]["process"]: entry for entry in json.loads(folder.targets.read_text())}

    async def during() -> None:
        await until(
            lambda: process(run, "b").state is State.BACKOFF and set(targets()) == {"a-0", "supervisor"}
        )
        assert targets()["a-0"] == {
            "targets": ["127.0.0.1:7001"],
            "labels": {"run": "mine", "process": "a-0", "service": "a", "__scheme__": "https"},
        }
        assert total(registry, "fairlead_supervisor_restarts_total", process="b", reason="exit") == 1
        assert total(registry, "fairlead_supervisor_process_state", process="b", state="restarting") == 1
        assert total(registry, "fairlead_run_outcome") == 0
        run.stop(RunOutcome(5, "a guard"))

    await run_while(run, during)
    assert total(registry, "fairlead_run_outcome", code="5") == 1
    assert set(targets()) == {"supervisor"}
    lingering = asyncio.create_task(run.linger(3_600.0))
    await asyncio.sleep(0)
    run.stop(RunOutcome(130, "a second signal ends it"))
    await asyncio.wait_for(lingering, 30)
    assert targets() == {}
    assert folder.targets.stat().st_mode & 0o777 == 0o644  # Prometheus is another user
