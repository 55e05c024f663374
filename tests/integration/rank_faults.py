"""Faults of the ranks of a trainer in a running PPO run, and the time that a run needs to recover from each.

`python -m tests.integration.rank_faults --rounds 3` kills, suspends and hangs each rank of two in each phase,
and prints the median recovery of each fault in each phase. A rank hangs by ptrace, so this needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil

import tests.conftest  # noqa: F401 - few threads, no hub, a clean environment
from fairlead.local.committed import CommittedUpdates
from fairlead.local.run_files import read_progress
from tests.integration.ppo_run import Started, audited, make, started

FAULTS = ("kill", "stop", "hang")
PHASES = ("wait", "prepare", "train", "publish", "checkpoint")
_PTRACE_SEIZE, _PTRACE_INTERRUPT, _WALL = 0x4206, 0x4207, 0x40000000
_PHASE_SECONDS = 200.0
_RECOVERY_SECONDS = 400.0


def limit_factor() -> float:
    """Return the factor of all limits, from TEST_LIMIT_FACTOR: above 1 on a machine with little CPU time."""
    return float(os.environ.get("TEST_LIMIT_FACTOR", "1"))


def flags() -> list[str]:
    """Return the flags of a run of two ranks."""
    settings = {
        "ranks.per_node": 2,
        # On a busy machine a beat, or the first step of a rank, takes seconds.
        "ranks.lost_seconds": 10.0 * limit_factor(),
        "ranks.stall_seconds": 15.0 * limit_factor(),
        # Of the main thread of rank 0, between its orders.
        "observe.stall_seconds": 20.0 * limit_factor(),
        # Failures that follow one another at once do not lengthen the recovery.
        "local.backoff_seconds": 0.005,
        "local.hung_seconds": 60.0 * limit_factor(),
    }
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def ranks_of(launcher: int | None) -> dict[int, psutil.Process]:
    """Return the processes of the ranks that run now, by number; none without a launcher."""
    found = {}
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(launcher).children() if launcher else ():
            with contextlib.suppress(psutil.Error):
                if "trainer.ppo" in child.cmdline() and "WORLD_SIZE" in child.environ():
                    found[int(child.environ()["RANK"])] = child
    return found


def suspended_in(run: Started, phase: str) -> dict[int, psutil.Process]:
    """Suspend rank 0 within a phase; return the ranks."""
    ranks: dict[int, psutil.Process] = {}
    deadline = time.monotonic() + _PHASE_SECONDS * limit_factor()

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
    assert hangs.wait(60), "ptrace is not permitted"


def incarnations(run: Started) -> int:
    return len(list(run.folder.checkpoints.glob("incarnation-*.json"))) and max(
        int(path.name.split("-")[1].split(".")[0])
        for path in run.folder.checkpoints.glob("incarnation-*.json")
    )


def inject(run: Started, fault: str, rank: int, phase: str) -> float:
    """Inject a fault; return the seconds until an update is trained that began after it.

    Then wait until one is committed: a second stall without one in between would end the run.
    """
    before = incarnations(run)
    committed = CommittedUpdates(run.folder.checkpoints)
    committed_before = committed()
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
    run.until(lambda: incarnations(run) > before, seconds=_RECOVERY_SECONDS * limit_factor())
    resumed = run.step()
    run.until(
        lambda: run.step() > resumed and trained_by(run, incarnations(run)),
        seconds=_RECOVERY_SECONDS * limit_factor(),
    )
    for process in ranks.values():
        assert not process.is_running(), "a rank has survived"
    seconds = time.monotonic() - began
    run.until(lambda: committed() > committed_before, seconds=_RECOVERY_SECONDS * limit_factor())
    return seconds


def trained_by(run: Started, incarnation: int) -> bool:
    lines = run.folder.ledger.read_text().splitlines()[-200:]
    return any(
        json.loads(line).get("incarnation") == incarnation
        for line in lines
        if line.startswith("{") and line[-1] == "}"
    )


def recoveries(run: Started, fault: str, rank: int) -> dict[str, float]:
    """Inject a fault of a rank in every phase, one after the other; return the seconds of each recovery."""
    seconds = {}
    for phase in PHASES:
        seconds[phase] = inject(run, fault, rank, phase)
        audited(run.folder)
    return seconds


def main() -> None:
    """Measure the recoveries, each fault in a run of its own, and print their medians."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.rank_faults", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, help="times that each rank has each fault in each phase"
    )
    rounds = parser.parse_args().rounds
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            file = make(Path(folder), updates=100_000)
            with started(file, *flags()) as run:
                run.until(lambda run=run: run.step() >= 2, seconds=_RECOVERY_SECONDS * limit_factor())
                for number in range(2 * rounds):
                    for phase, seconds in recoveries(run, fault, number % 2).items():
                        found[fault, phase].append(seconds)
                        sys.stderr.write(f"{fault} of rank {number % 2} in {phase}: {seconds:.1f} s\n")
    sys.stdout.write("| seconds | " + " | ".join(PHASES) + " |\n" + "|---" * (1 + len(PHASES)) + "|\n")
    for fault in FAULTS:
        medians = [f"{statistics.median(found[fault, phase]):.1f}" for phase in PHASES]
        sys.stdout.write(f"| {fault} | " + " | ".join(medians) + " |\n")


if __name__ == "__main__":
    main()
