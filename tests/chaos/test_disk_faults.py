"""A full disk and a read-only one, under the checkpoints and under the weights of a whole run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.disks import mounted
from tests.integration.ppo_run import Started, check, make, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def survive(run: Started, strike: Callable[[], None], mend: Callable[[], None], *, says: str) -> None:
    """The trainer ends with the reason, all others work on; when the disk is mended the run goes on."""
    log = run.folder.log("trainer")
    before, others = len(log.read_text()), run.pids()
    strike()
    # Twice: the trainer that is started again finds the disk as it was.
    run.until(lambda: log.read_text()[before:].count(says) >= 2, seconds=120)
    assert "Traceback" not in log.read_text()[before:]
    now = run.pids()
    assert {name: pid for name, pid in others.items() if name != "trainer"} == {
        name: pid for name, pid in now.items() if name != "trainer"
    }
    mend()
    done = run.step()
    run.until(lambda: run.step() >= done + 4, seconds=120)


@pytest.mark.parametrize("what", ["checkpoints", "weights"])
def test_a_disk_that_is_full_and_one_that_is_read_only_cost_only_time(tmp_path: Path, what: str):
    file = make(tmp_path, updates=60)
    folder = tmp_path / "runs" / "tiny" / what
    with mounted(folder) as disks, started(file, inside=disks.inside(tmp_path)) as run:
        run.until(lambda: run.step() >= 3)
        survive(run, lambda: disks.fill(folder), lambda: disks.empty(folder), says="is full")
        survive(
            run,
            lambda: disks.remount(folder, "ro"),
            lambda: disks.remount(folder, "rw"),
            says="is read-only",
        )
        code, said = run.finish(seconds=240)
        assert code == 0, said + run.words()
        assert "trainer died (exit code 1, last line: OutOfSpace: " in said
        assert "trainer died (exit code 1, last line: ReadOnlyDisk: " in said
        disks.bring_out()
        check(run.folder)
