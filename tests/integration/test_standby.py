"""Processes on standby: they run a command as a new interpreter would, or are not used."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.config import RunFolder
from fairlead.local.process import ProcessSpec
from fairlead.local.restart_policy import RunOutcome
from fairlead.local.run_files import MARK, running_pids
from fairlead.local.standby import Standby
from tests.integration.supervised import run_folder, run_while, supervisor
from tests.service_process import own_processes
from tests.waiting import until

PROGRAM = """
import json, os, sys, time
found = {
    "arguments": sys.argv[1:],
    "name": __name__,
    "imported": "colorsys" in sys.modules,
    "own": os.environ.get("FAIRLEAD_OWN"),
    "gone": os.environ.get("FAIRLEAD_GONE"),
}
print(json.dumps(found), flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "standby_program.py").write_text(PROGRAM)
    here = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": here, "FAIRLEAD_GONE": "1", MARK: str(tmp_path / "run")}


@pytest.fixture
def standby() -> Iterator[Standby]:
    with Standby(imports=["colorsys", "no_such_module"]) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with run_folder(tmp_path / "run") as made:
        yield made


def command(seconds: float, code: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "standby_program", str(seconds), str(code))


async def test_a_command_runs_as_in_a_new_interpreter(
    standby: Standby, environment: dict[str, str], tmp_path: Path
):
    standby.prepare(1, environment)
    own = {name: value for name, value in environment.items() if name != "FAIRLEAD_GONE"}
    child = standby.take(command(0, 7), own | {"FAIRLEAD_OWN": "2"}, log=tmp_path / "log")
    assert child is not None
    assert await child.wait() == 7
    assert (tmp_path / "log").read_text() == (
        '{"arguments": ["0", "7"], "name": "__main__", "imported": true, "own": "2", "gone": null}\n'
    )
    assert standby.take(command(0, 0), own, log=tmp_path / "log") is None, "none is left"


def test_a_process_that_cannot_run_the_command_is_not_used(
    standby: Standby, environment: dict[str, str], tmp_path: Path
):
    before = own_processes()
    for count in (1, 2, 1):
        standby.prepare(count, environment)
    waiting = own_processes() - before
    assert len(waiting) == 2, "those that wait count"
    for changed in ({"OMP_NUM_THREADS": "7"}, {MARK: "another"}):
        assert standby.take(command(0, 0), environment | changed, log=tmp_path / "log") is None
    assert standby.take(("/bin/true",), environment, log=tmp_path / "log") is None
    for process in waiting:
        process.kill()
        process.wait()
    assert standby.take(command(0, 0), environment, log=tmp_path / "log") is None, "both had died"


async def test_processes_import_one_after_the_other_and_a_command_does_not_wait(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With two cores one process imports, beside the stage that runs."""
    monkeypatch.setattr("fairlead.local.standby.usable_cores", lambda: 2)
    (tmp_path / "standby_slow.py").write_text(
        "import pathlib, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "(here / f'import-{time.monotonic_ns()}').touch()\n"
        "while not (here / 'go').exists():\n"
        "    time.sleep(0.01)\n"
    )

    def importing() -> int:
        return len(list(tmp_path.glob("import-*")))

    with Standby(imports=["standby_slow"]) as standby:
        standby.prepare(3, environment)
        await until(lambda: importing() == 1)
        await asyncio.sleep(0.3)
        assert importing() == 1
        children = [standby.take(command(0, 0), environment, log=tmp_path / "log") for _ in range(3)]
        await until(lambda: importing() == 3)
        (tmp_path / "go").touch()
        assert [await child.wait() for child in children if child] == [0, 0, 0]


async def test_the_supervisor_uses_it_and_ends_it(
    standby: Standby, environment: dict[str, str], folder: RunFolder
):
    before = own_processes()
    standby.prepare(2, environment)
    waiting = {process.pid for process in own_processes() - before}
    spec = ProcessSpec(name="one", command=command(60, 0), loads_models=True)
    run = supervisor(folder, spec, standby=standby, environment=environment)

    async def stop() -> None:
        log = folder.log("one")
        await until(lambda: log.exists() and '"arguments"' in log.read_text())
        [pid] = running_pids(folder.processes, mark=str(folder.root)).values()
        assert pid in waiting
        run.stop(RunOutcome(130, "stopped"))

    assert (await run_while(run, stop)).code == 130


def test_unused_processes_end_with_the_block(environment: dict[str, str]):
    before = own_processes()
    with Standby(imports=[]) as standby:
        standby.prepare(1, environment)
        [process] = own_processes() - before
    deadline = time.monotonic() + 10
    while process.is_running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process.is_running()
