"""`deterministic = true`: the same weights to the last bit, for any number of workers and after any kill."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import psutil
import pytest

from fairlead.config import RunFolder
from fairlead.local.run_files import read_progress
from tests.integration.ppo_run import DYNAMIC_SAMPLING, ONLINE_DPO, Started, check, make, started
from tests.integration.rank_faults import ranks_of

# Every run starts six processes or more, each with seconds of torch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SETTINGS = (
    "--set",
    "deterministic=true",
    "--set",
    "evaluation.every_updates=2",
    "--set",
    "evaluation.num_prompts=8",
)
PHASES = ("wait", "prepare", "train", "publish", "checkpoint", "evaluate")


def digests(folder: RunFolder) -> dict[str, str]:
    """Return SHA-256 of the final policy, and of policy, critic and optimizers in the last checkpoint."""
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.policy_model.glob("*.safetensors")
    }
    last = max(folder.checkpoints.glob("[0-9]*-[0-9]*"), key=lambda path: int(path.name.split("-")[1]))
    files = json.loads((last / "manifest.json").read_text())["files"]
    return found | {f"checkpoint {name}": digest for name, digest in files.items() if name != "state.json"}


def finished(
    folder: Path,
    *arguments: str,
    updates: int,
    samples: int = 1,
    during: Callable[[Started], None] = lambda run: None,
) -> dict[str, str]:
    """Run to the end with a fault; return the digests."""
    folder.mkdir()
    with started(make(folder, updates=updates, num_samples=samples), *SETTINGS, *arguments) as run:
        during(run)
        code, output = run.finish(seconds=1_500)
        assert code == 0, output + run.log_tails()
        check(run.folder)
        return digests(run.folder)


def kill_in(phase: str) -> Callable[[Started], None]:
    """Kill the trainer while it is in that phase, after at least three updates."""

    def during(run: Started) -> None:
        def caught() -> bool:
            now = read_progress(run.folder.progress)
            pid = run.pids().get("trainer")
            if now is None or pid is None or now.phase != phase or now.step < 3:
                return False
            with contextlib.suppress(psutil.NoSuchProcess):
                trainer = psutil.Process(pid)
                trainer.suspend()
                now = read_progress(run.folder.progress)
                if now is not None and now.phase == phase:
                    os.kill(pid, signal.SIGKILL)
                    return True
                trainer.resume()
            return False

        poll_without_pause(run, caught)
        run.until(lambda: run.step() > 3)

    return during


def kill_ranks(run: Started) -> None:
    """Kill each rank of the trainer once, with updates between that end in a checkpoint."""
    for rank in (1, 0):
        after = run.step() + 2
        run.until(partial(has_ranks_and, run, after), seconds=1_500)
        ranks_of(run.pids().get("trainer"))[rank].kill()


def has_ranks_and(run: Started, step: int) -> bool:
    """Return whether the trainer has done some updates and its second rank runs."""
    return run.step() >= step and 1 in ranks_of(run.pids().get("trainer"))


def kill_in_start(run: Started) -> None:
    """Kill the trainer, and its successor as soon as that has claimed its incarnation."""
    kill_trainer(run)
    dead = run.pids().get("trainer")
    poll_without_pause(run, (run.folder.checkpoints / "incarnation-2.json").exists)
    pid = run.pids()["trainer"]
    assert pid != dead
    os.kill(pid, signal.SIGKILL)


def poll_without_pause(run: Started, condition: Callable[[], bool]) -> None:
    """As `until`, but poll without a pause, because some phases are short."""
    deadline = time.monotonic() + 120
    while not condition():
        assert run.process.poll() is None, run.log_tails()
        assert time.monotonic() < deadline, run.log_tails()


def kill_all(run: Started) -> None:
    run.until(lambda: run.step() >= 3)
    for pid in run.pids().values():
        os.kill(pid, signal.SIGKILL)


def kill_trainer(run: Started) -> None:
    run.until(lambda: run.step() >= 3)
    os.kill(run.pids()["trainer"], signal.SIGKILL)


def flags(settings: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(part for key, value in settings.items() for part in ("--set", f"{key}={str(value).lower()}"))


@pytest.mark.parametrize(
    ("samples", "settings"),
    [(1, ()), (4, ()), (4, flags(DYNAMIC_SAMPLING)), (4, flags(ONLINE_DPO))],
    ids=("1", "4", "dynamic", "pairs"),
)
def test_four_workers_and_killed_trainer_give_same_bits(
    tmp_path: Path, samples: int, settings: tuple[str, ...]
):
    workers = ("--set", "rollout_worker.replicas=4", *settings)
    undisturbed = finished(tmp_path / "peace", *settings, updates=6, samples=samples)
    disturbed = finished(tmp_path / "disturbed", *workers, updates=6, samples=samples, during=kill_trainer)
    assert len(undisturbed) == (3 if settings else 5)  # without and with a critic
    assert disturbed == undisturbed


def test_same_bits_after_any_kill(tmp_path: Path):
    updates = 12
    undisturbed = finished(tmp_path / "peace", updates=updates)
    again = finished(tmp_path / "again", updates=updates)
    assert again == undisturbed
    for workers, policies in ((4, 1), (2, 2)):
        counts = ("--set", f"rollout_worker.replicas={workers}", "--set", f"policy.replicas={policies}")
        assert finished(tmp_path / f"{workers}-{policies}", *counts, updates=updates) == undisturbed
    for phase in PHASES:
        killed = finished(tmp_path / f"killed-in-{phase}", updates=updates, during=kill_in(phase))
        assert killed == undisturbed, f"killed in {phase}"
    assert finished(tmp_path / "killed-in-start", updates=updates, during=kill_in_start) == undisturbed
    assert finished(tmp_path / "all", updates=updates, during=kill_all) == undisturbed


def test_same_bits_on_two_ranks_after_each_is_killed(tmp_path: Path):
    ranks = ("--set", "ranks.per_node=2")
    undisturbed = finished(tmp_path / "peace", *ranks, updates=8)
    # Checkpoints that are written during the next update are the same, and a kill before one is committed
    # resumes from the one before.
    asynchronous = ("--set", "checkpoint.asynchronous=true")
    killed = finished(tmp_path / "killed", *ranks, *asynchronous, updates=8, during=kill_ranks)
    assert [name for name in undisturbed if "rank-00001" in name]
    assert killed == undisturbed
