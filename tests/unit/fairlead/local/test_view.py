"""The view of a running stage: short figures, and a display that fits narrow and wide terminals."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from fairlead.config import RunFolder
from fairlead.local.numbers import duration, number
from fairlead.local.process import ChildProcess, ProcessSpec, State
from fairlead.local.run_files import read_progress, write_record
from fairlead.local.view import View

FIGURES = {"reward": 1.2345, "kl": 0.00004, "tokens_per_second": 12345.6, "seconds_wait": 1.0, "entropy": 3.5}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.23456, "1.23"),
        (-0.5, "-0.5"),
        (999.4, "999"),
        (12_345.6, "12,346"),
        (0.00004, "4.0e-05"),
        (float("nan"), "nan"),
    ],
)
def test_figures_are_short(value: float, text: str):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.9, "0:07"), (754, "12:34"), (11_100, "3:05:00"), (-3, "0:00")]
)
def test_durations_are_formatted(seconds: float, text: str):
    assert duration(seconds) == text


def view(folder: Path, **changes: object) -> View:
    now = {
        "stage": "ppo",
        "phase": "wait",
        "step": 12,
        "total": 24,
        "figures": FIGURES,
        "since": time.time() - 3,
        "waiting_for": "8 of 256 tasks of update 12: 3072, 3073, 3074, 3075, 3076, …",
        "eta_seconds": 75.0,
    }
    run = RunFolder(folder)
    run.progress.write_text(json.dumps(now | changes))
    processes = []
    for name in ("valkey", "trainer", "rollout-worker-0"):
        spec = ProcessSpec(name=name, command=(sys.executable,))
        processes.append(ChildProcess(spec, log=run.log(name), environment={}))
    processes[0].mark_ready()
    processes[2].state = State.BACKOFF
    processes[2].starts = 3
    stage = str((now | changes)["stage"])
    write_record(run.supervisor, processes, stage=stage, started=time.time() - 60, outcome=None)
    found = View(run, stage=stage)
    asyncio.run(found.read_status())
    return found


def drawn(of: View, width: int, height: int = 40) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(of.render(console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_view_fits_the_terminal(tmp_path: Path, width: int):
    lines = drawn(view(tmp_path), width)
    assert max(len(line) for line in lines) <= width
    assert [line.split()[0] for line in lines[-3:]] == ["rollout-worker-0", "trainer", "valkey"]
    assert "12 of 24" in "".join(lines[:2])
    assert "ETA 1:15" in "".join(lines[:3])
    assert any(line.startswith("✗ rollout-worker-0 is restarting, 2") for line in lines)


def test_view_shows_the_most_important_figures(tmp_path: Path):
    text = "\n".join(drawn(view(tmp_path), 120))
    # Of a folder's path that would not fit, only the name is left.
    assert f"{tmp_path.name} · running · ppo · update 12 of 24 · 0:00 · ETA 1:15" in text
    # The tasks that are missing follow only when the wait is long.
    assert "wait for 8 of 256 tasks of update 12 · 0:03" in text
    assert "reward        1.23" in text
    assert "seconds wait" not in text


def test_low_terminal_shows_the_processes_that_are_not_well(tmp_path: Path):
    lines = drawn(view(tmp_path), 80, height=18)
    assert lines[-2].split()[:2] == ["rollout-worker-0", "restarting"]
    assert lines[-1] == "and 2 more"


def test_line_before_the_first_progress_names_waiting_processes(tmp_path: Path):
    quiet = view(tmp_path, stage="sft")
    (tmp_path / "progress.json").unlink()
    quiet = View(RunFolder(tmp_path), stage="sft")
    assert quiet.line() == "starting"
    asyncio.run(quiet.read_status())
    assert quiet.line() == "starting, waiting for trainer, rollout-worker-0"
    assert "starting" in drawn(quiet, 80)[0]


def test_line_of_a_phase_without_steps_names_what_is_done(tmp_path: Path):
    doing = "scoring demonstrations, 256 of 2,048"
    changes = {
        "stage": "reward_model",
        "step": 24,
        "phase": "evaluate",
        "waiting_for": None,
        "eta_seconds": None,
    }
    found = view(tmp_path, **changes, doing=doing)
    assert found.line().startswith(f"reward_model 24/24 · evaluate: {doing} · reward 1.23")
    assert f"evaluate: {doing}" in "\n".join(drawn(found, 120))


def test_line_of_a_finished_run_has_no_eta(tmp_path: Path):
    line = view(tmp_path, step=24, phase="done", waiting_for=None, eta_seconds=0.0).line()
    assert line == "ppo 24/24 · done · reward 1.23 · KL 4.0e-05 · tokens/s 12,346 · entropy 3.5"


def test_figure_that_is_not_finite_is_shown(tmp_path: Path):
    # In JSON it is null; the run still has progress.
    found = view(tmp_path, figures=FIGURES | {"kl": None})
    assert "KL nan" in found.line()
    assert any(line.split()[:4] == ["reward", "1.23", "KL", "nan"] for line in drawn(found, 80))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"stage": "ppo"}', '{"stage":1,"phase":2,"step":"x","total":1}']
)
def test_damaged_progress_file_is_ignored(tmp_path: Path, text: str):
    path = tmp_path / "progress.json"
    assert read_progress(path) is None
    path.write_text(text)
    assert read_progress(path) is None
