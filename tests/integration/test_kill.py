"""SIGKILL of every process of a run, one after another: the run completes, and every task counts once."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.integration.ppo_run import BATCH, Started, audited, check, left_over, make, started
from tests.tiny import tiny_reward_model

# Every start of a process costs seconds of torch; on a busy machine many.
pytestmark = pytest.mark.timeout(600)


def kill_and_recover(run: Started, name: str, *, updates: int) -> None:
    """Kill a process during a run; wait for its successor and for some more updates."""
    run.until(lambda: name in run.pids())
    before = run.pids()[name]
    done = run.step()
    assert not run.folder.result("ppo").exists(), "too late: the run has ended"
    os.kill(before, signal.SIGKILL)
    run.until(lambda: run.pids().get(name, before) != before)
    run.until(lambda: run.step() >= done + updates)


@pytest.mark.slow
def test_run_survives_kills_of_worker_and_trainer_and_ctrl_c(tmp_path: Path):
    file = make(tmp_path, updates=30)
    with started(file) as run:
        run.until(lambda: run.step() >= 2)
        kill_and_recover(run, "rollout-worker-0", updates=2)
        for _ in range(5):  # at any moment of an active run
            assert not audited(run.folder).ended
        kill_and_recover(run, "trainer", updates=2)
        assert len(audited(run.folder).incarnations) == 2
        run.process.send_signal(signal.SIGINT)
        code, output = run.finish()
        assert code == 130, output + run.log_tails()
        assert output.splitlines()[-1] == "stopped by SIGINT; the same command continues the run"
        assert "killing" not in output
        assert left_over(run.folder) == []
        assert not run.folder.result("ppo").exists()
        stopped = audited(run.folder)
        assert (stopped.ended, stopped.queue) == (False, None)
        assert stopped.trained >= 4 * BATCH
    # Another reward model, and other prompts, while the run is stopped.
    tiny_reward_model(tmp_path / "reward", seed=3)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text() + json.dumps({"prompt": "w3 w4"}) + "\n")
    with started(file) as run:
        code, output = run.finish()
        assert code == 0, output + run.log_tails()
        [warning] = [line for line in output.splitlines() if "began with other inputs" in line]
        for changed in ("data.prompts: prompts.jsonl now has", "reward.path: reward now has"):
            assert f"{changed} other contents (" in warning
        resumed = json.loads((run.folder.checkpoints / "incarnation-3.resumed-from.json").read_text())
        assert resumed["resumed_from"] >= 4
        check(run.folder)


@pytest.mark.slow
def test_run_survives_death_of_each_process(tmp_path: Path):
    names = ("policy-0", "reward-0", "reference-0", "rollout-worker-0", "trainer", "valkey")
    with started(make(tmp_path, updates=80)) as run:
        run.until(lambda: run.step() >= 2)
        for name in names:
            kill_and_recover(run, name, updates=2)
        code, output = run.finish()
        assert code == 0, output + run.log_tails()
        for name in names:
            assert f"{name} died (killed by SIGKILL); restarting it" in output
        check(run.folder)


@pytest.mark.slow
def test_death_of_supervisor_ends_the_run_and_same_command_continues(tmp_path: Path):
    file = make(tmp_path, updates=20)
    with started(file) as run:
        run.until(lambda: run.step() >= 3)
        children = [psutil.Process(pid) for pid in run.pids().values()]
        assert len(children) == 6
        run.process.kill()
        run.process.wait()
        assert psutil.wait_procs(children, timeout=10)[1] == []
    with started(file) as run:
        code, output = run.finish()
        assert code == 0, output + run.log_tails()
        check(run.folder)
