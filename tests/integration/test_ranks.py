"""A PPO run with a trainer of two ranks: every rank killed, suspended and hanging in every phase."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fairlead.local.run_files import read_progress
from tests.integration.ppo_run import Started, audited, check, make, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_000)]

PHASES = ("wait", "prepare", "train", "publish", "checkpoint")
FAULTS = ("kill", "stop", "hang")
SETTINGS = {
    "ranks.per_node": 2,
    "ranks.lost_seconds": 4.0,
    "ranks.stall_seconds": 4.0,
    # Of the main thread of rank 0, between its orders.
    "observe.stall_seconds": 8.0,
    "local.max_restarts": 1_000,
    "local.ready_seconds": 600,
}
_PTRACE_SEIZE, _PTRACE_INTERRUPT = 0x4206, 0x4207


def ranks_of(run: Started) -> dict[int, psutil.Process]:
    """Return the processes of the ranks that run now, by number."""
    launcher = run.pids().get("trainer")
    found = {}
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(launcher).children() if launcher else ():
            with contextlib.suppress(psutil.Error):
                if "trainer.ppo" in child.cmdline() and "WORLD_SIZE" in child.environ():
                    found[int(child.environ()["RANK"])] = child
    return found


@contextlib.contextmanager
def in_phase(run: Started, phase: str) -> Iterator[dict[int, psutil.Process]]:
    """Suspend rank 0 within a phase for the duration of the block; gives the ranks."""
    ranks: dict[int, psutil.Process] = {}
    deadline = time.monotonic() + 100

    def now() -> str:
        found = read_progress(run.folder.progress)
        return found.phase if found else ""

    while True:
        assert time.monotonic() < deadline, f"the phase {phase} does not come: {run.log_tails()}"
        assert run.process.poll() is None, run.finish()
        if len(ranks) < 2 or not ranks[0].is_running():
            ranks = ranks_of(run)
            time.sleep(0.01)
            continue
        if now() != phase:
            time.sleep(0.0005)
            continue
        with contextlib.suppress(psutil.Error):
            ranks[0].suspend()
            if now() == phase:
                break
            ranks[0].resume()
    yield ranks
    with contextlib.suppress(psutil.Error):
        ranks[0].resume()


def hang(process: psutil.Process) -> None:
    """Suspend the main thread of a process; its other threads continue."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_ulong] * 4
    ptrace.restype = ctypes.c_long
    assert ptrace(_PTRACE_SEIZE, process.pid, 0, 0) == 0, os.strerror(ctypes.get_errno())
    assert ptrace(_PTRACE_INTERRUPT, process.pid, 0, 0) == 0, os.strerror(ctypes.get_errno())


def incarnations(run: Started) -> int:
    return len(list(run.folder.checkpoints.glob("incarnation-*.json"))) and max(
        int(path.name.split("-")[1].split(".")[0])
        for path in run.folder.checkpoints.glob("incarnation-*.json")
    )


def inject(run: Started, fault: str, rank: int, phase: str) -> float:
    """Inject a fault; return the seconds until an update is trained that began after it."""
    before = incarnations(run)
    with in_phase(run, phase) as ranks:
        began = time.monotonic()
        if fault == "kill":
            ranks[rank].kill()
        elif fault == "hang":
            hang(ranks[rank])
        elif rank == 1:
            ranks[1].suspend()
    if fault == "stop" and rank == 0:
        ranks[0].suspend()
    run.until(lambda: incarnations(run) > before, seconds=400)
    resumed = run.step()
    run.until(lambda: run.step() > resumed and trained_by(run, incarnations(run)), seconds=400)
    for process in ranks.values():
        assert not process.is_running(), "a rank has survived"
    return time.monotonic() - began


def trained_by(run: Started, incarnation: int) -> bool:
    lines = run.folder.ledger.read_text().splitlines()[-200:]
    return any(
        json.loads(line).get("incarnation") == incarnation
        for line in lines
        if line.startswith("{") and line[-1] == "}"
    )


def set_ranks(file: Path) -> list[str]:
    return [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.skipif(sys.platform != "linux", reason="a thread is suspended with ptrace")
def test_run_survives_every_fault_of_every_rank_in_every_phase(tmp_path: Path):
    file = make(tmp_path, updates=1_000)
    seconds: dict[tuple[str, int, str], float] = {}
    with started(file, *set_ranks(file)) as run:
        run.until(lambda: run.step() >= 2, seconds=400)
        services = {name: pid for name, pid in run.pids().items() if name != "trainer"}
        for fault, rank, phase in itertools.product(FAULTS, (0, 1), PHASES):
            seconds[fault, rank, phase] = inject(run, fault, rank, phase)
            print(fault, rank, phase, round(seconds[fault, rank, phase], 1), flush=True)  # noqa: T201
            audited(run.folder)
        assert {name: pid for name, pid in run.pids().items() if name != "trainer"} == services
        run.process.send_signal(signal.SIGINT)
        code, output = run.finish()
        assert code == 130, output + run.log_tails()
    for name in FAULTS:
        found = [value for (fault, _, _), value in seconds.items() if fault == name]
        print(name, "median", statistics.median(found), "longest", max(found))  # noqa: T201
    step = run.step()
    with started(file, *set_ranks(file), "--set", f"ppo.updates={step + 4}") as run:
        code, output = run.finish(seconds=300)
        assert code == 0, output + run.log_tails()
        check(run.folder)


def test_exit_codes_of_ranks_reach_the_caller(tmp_path: Path):
    file = make(tmp_path, updates=4)
    with started(file, *set_ranks(file), "--set", "policy.path=missing") as run:
        code, output = run.finish()
        assert code == 2, output + run.log_tails()
        assert "missing" in output.splitlines()[-1]
