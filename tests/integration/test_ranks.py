"""A PPO run with a trainer of two ranks: each rank killed, suspended and hanging in every phase."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.integration.ppo_run import check, make, started
from tests.integration.rank_faults import FAULTS, flags, limit_factor, recoveries

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800 * limit_factor())]
SECONDS = 400 * limit_factor()


@pytest.mark.skipif(sys.platform != "linux", reason="a thread is suspended with ptrace")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_run_survives_a_fault_of_every_rank_in_every_phase(fault: str, rank: int, tmp_path: Path):
    file = make(tmp_path, updates=1_000)
    with started(file, *flags()) as run:
        run.until(lambda: run.step() >= 2, seconds=SECONDS)
        services = {name: pid for name, pid in run.pids().items() if name != "trainer"}
        seconds = recoveries(run, fault, rank)
        assert {name: pid for name, pid in run.pids().items() if name != "trainer"} == services
        run.process.send_signal(signal.SIGINT)
        code, output = run.finish(seconds=SECONDS)
        assert code == 130, output + run.log_tails()
    # Shown with -s.
    print(fault, rank, {phase: round(value, 1) for phase, value in seconds.items()})  # noqa: T201
    step = run.step()
    with started(file, *flags(), "--set", f"ppo.updates={step + 2}") as run:
        code, output = run.finish(seconds=SECONDS)
        assert code == 0, output + run.log_tails()
        check(run.folder)


def test_exit_codes_of_ranks_reach_the_caller(tmp_path: Path):
    file = make(tmp_path, updates=4)
    with started(file, *flags(), "--set", "policy.path=missing") as run:
        code, output = run.finish(seconds=SECONDS)
        assert code == 2, output + run.log_tails()
        assert "missing" in output.splitlines()[-1]
