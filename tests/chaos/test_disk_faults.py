"""A full and a read-only disk, under the checkpoints and under the weights of a whole run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.disks import mounted
from tests.integration.ppo_run import Started, check, make, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def survive(run: Started, inject: Callable[[], None], heal: Callable[[], None], *, message: str) -> None:
    """The trainer exits with the reason, the others keep running; after `heal` the run continues."""
    log = run.folder.log("trainer")
    before = len(log.read_text())
    others = run.pids()
    inject()
    # Twice: the restarted trainer finds the disk unchanged.
    run.until(lambda: log.read_text()[before:].count(message) >= 2, seconds=120)
    assert "Traceback" not in log.read_text()[before:]
    now = run.pids()
    assert {name: pid for name, pid in others.items() if name != "trainer"} == {
        name: pid for name, pid in now.items() if name != "trainer"
    }
    heal()
    done = run.step()
    run.until(lambda: run.step() >= done + 4, seconds=120)


@pytest.mark.parametrize("what", ["checkpoints", "weights"])
def test_full_or_read_only_disk_only_delays_the_run(tmp_path: Path, what: str):
    file = make(tmp_path, updates=60)
    folder = tmp_path / "runs" / "tiny" / what
    with mounted(folder) as disks, started(file, inside=disks.inside(tmp_path)) as run:
        run.until(lambda: run.step() >= 3)
        survive(run, lambda: disks.fill(folder), lambda: disks.empty(folder), message="is full")
        survive(
            run,
            lambda: disks.remount(folder, "ro"),
            lambda: disks.remount(folder, "rw"),
            message="is read-only",
        )
        code, output = run.finish(seconds=240)
        assert code == 0, output + run.log_tails()
        assert "trainer died (exit code 1, last line: OutOfSpace: " in output
        assert "trainer died (exit code 1, last line: ReadOnlyDisk: " in output
        disks.bring_out()
        check(run.folder)
