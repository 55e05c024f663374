"""A PPO run with a trainer of two ranks: each rank killed, suspended and hanging in every phase."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from fairlead.local.run_files import read_progress
from tests.integration.ppo_run import Started, audited, check, make, started
from tests.integration.rank_processes import ranks_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

PHASES = ("wait", "prepare", "train", "publish", "checkpoint")
SETTINGS = {
    "ranks.per_node": 2,
    # On a busy machine a beat, or the first step of a rank, takes seconds.
    "ranks.lost_seconds": 10.0,
    "ranks.stall_seconds": 15.0,
    # Of the main thread of rank 0, between its orders.
    "observe.stall_seconds": 20.0,
    # Failures that follow one another at once do not lengthen the recovery.
    "local.backoff_seconds": 0.005,
}
_PTRACE_SEIZE, _PTRACE_INTERRUPT, _WALL = 0x4206, 0x4207, 0x40000000


def suspended_in(run: Started, phase: str) -> dict[int, psutil.Process]:
    """Suspend rank 0 within a phase; return the ranks."""
    ranks: dict[int, psutil.Process] = {}
    deadline = time.monotonic() + 200

    def now() -> str:
        found = read_progress(run.folder.progress)
        return found.phase if found else ""

    while True:
        assert time.monotonic() < deadline, f"the phase {phase} does not come: {run.log_tails()}"
        assert run.process.poll() is None, run.finish()
        if len(ranks) < 2 or not ranks[0].is_running():
            ranks = ranks_of(run.pids().get("trainer"))
            time.sleep(0.01)
            continue
        if now() != phase:
            time.sleep(0.0005)
            continue
        with contextlib.suppress(psutil.Error):
            ranks[0].suspend()
            if now() == phase:
                return ranks
            ranks[0].resume()


def hang(process: psutil.Process) -> None:
    """Suspend the main thread of a process until it is killed; its other threads continue."""
    hangs = threading.Event()

    def trace() -> None:
        ptrace = ctypes.CDLL(None, use_errno=True).ptrace
        ptrace.argtypes = [ctypes.c_ulong] * 4
        ptrace.restype = ctypes.c_long
        if ptrace(_PTRACE_SEIZE, process.pid, 0, 0) or ptrace(_PTRACE_INTERRUPT, process.pid, 0, 0):
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, _WALL)
            hangs.set()
            # Its parent learns of its end only when the tracer has.
            os.waitpid(process.pid, _WALL)

    threading.Thread(target=trace, daemon=True).start()
    process.resume()
    assert hangs.wait(10), "ptrace is not permitted"


def incarnations(run: Started) -> int:
    return len(list(run.folder.checkpoints.glob("incarnation-*.json"))) and max(
        int(path.name.split("-")[1].split(".")[0])
        for path in run.folder.checkpoints.glob("incarnation-*.json")
    )


def inject(run: Started, fault: str, rank: int, phase: str) -> float:
    """Inject a fault; return the seconds until an update is trained that began after it."""
    before = incarnations(run)
    ranks = suspended_in(run, phase)
    began = time.monotonic()
    if fault == "kill":
        ranks[rank].kill()
    elif fault == "hang":
        hang(ranks[rank])
    elif rank == 1:
        ranks[1].suspend()
    if (fault, rank) not in (("stop", 0), ("kill", 0)):
        ranks[0].resume()
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


def flags() -> list[str]:
    return [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.skipif(sys.platform != "linux", reason="a thread is suspended with ptrace")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fault", ["kill", "stop", "hang"])
def test_run_survives_a_fault_of_every_rank_in_every_phase(fault: str, rank: int, tmp_path: Path):
    file = make(tmp_path, updates=1_000)
    seconds = {}
    with started(file, *flags()) as run:
        run.until(lambda: run.step() >= 2, seconds=400)
        services = {name: pid for name, pid in run.pids().items() if name != "trainer"}
        for phase in PHASES:
            seconds[phase] = inject(run, fault, rank, phase)
            audited(run.folder)
        assert {name: pid for name, pid in run.pids().items() if name != "trainer"} == services
        run.process.send_signal(signal.SIGINT)
        code, output = run.finish()
        assert code == 130, output + run.log_tails()
    # Shown with -s.
    print(fault, rank, {phase: round(value, 1) for phase, value in seconds.items()})  # noqa: T201
    step = run.step()
    with started(file, *flags(), "--set", f"ppo.updates={step + 2}") as run:
        code, output = run.finish(seconds=400)
        assert code == 0, output + run.log_tails()
        check(run.folder)


def test_exit_codes_of_ranks_reach_the_caller(tmp_path: Path):
    file = make(tmp_path, updates=4)
    with started(file, *flags(), "--set", "policy.path=missing") as run:
        code, output = run.finish()
        assert code == 2, output + run.log_tails()
        assert "missing" in output.splitlines()[-1]
