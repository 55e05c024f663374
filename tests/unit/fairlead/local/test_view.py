"""The view of a running stage: short figures, and a display that fits narrow and wide terminals."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from fairlead.local.process import ChildProcess, ProcessSpec, State
from fairlead.local.run_files import read_progress
from fairlead.local.view import View, duration, number

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
    path = folder / "progress.json"
    path.write_text(json.dumps(now | changes))
    processes = []
    for name in ("valkey", "trainer", "rollout-worker-0"):
        spec = ProcessSpec(name=name, command=(sys.executable,))
        processes.append(ChildProcess(spec, log=folder / "logs" / f"{name}.log", environment={}))
    processes[0].mark_ready()
    processes[2].state = State.BACKOFF
    processes[2].starts = 3
    return View("runs/quickstart · ppo", stage="ppo", path=path, processes=processes)


def drawn(of: View, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(of.render(width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_view_fits_the_terminal(tmp_path: Path, width: int):
    lines = drawn(view(tmp_path), width)
    assert max(len(line) for line in lines) <= width
    # Headline, bar, phase, figures, table header and a row per process: no line wraps.
    assert len(lines) == 8
    assert [line.split()[0] for line in lines[-3:]] == ["valkey", "trainer", "rollout-worker-0"]


def test_view_shows_the_most_important_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = "\n".join(drawn(view(tmp_path), 120))
    assert "runs/quickstart · ppo · update 12 of 24 · 0:00 · ETA 1:15" in text
    assert "wait for 8 of 256 tasks of update 12" in text
    assert "reward 1.23   KL 4.0e-05   tokens/s 12,346   entropy 3.5" in text
    assert "seconds wait" not in text
    row = next(line for line in text.splitlines() if line.startswith("rollout-worker-0"))
    assert row.split() == ["rollout-worker-0", "restarting", "2", "–", "–", "logs/rollout-worker-0.log"]


def test_log_column_is_left_out_if_it_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert drawn(view(tmp_path), 80)[4].split() == ["process", "state", "restarts", "pid", "up", "log"]
    assert drawn(view(tmp_path), 60)[4].split() == ["process", "state", "restarts", "pid", "up"]
    assert drawn(view(tmp_path), 40)[4].split() == ["process", "state", "restarts"]


def test_line_before_the_first_progress_names_waiting_processes(tmp_path: Path):
    quiet = view(tmp_path, stage="sft")
    assert quiet.line() == "starting, waiting for trainer, rollout-worker-0"
    assert "starting" in drawn(quiet, 80)[0]


def test_line_of_a_phase_without_steps_names_what_is_done(tmp_path: Path):
    changes = {
        "stage": "reward_model",
        "step": 24,
        "phase": "evaluate",
        "waiting_for": None,
        "eta_seconds": None,
    }
    doing = "scoring demonstrations, 256 of 2,048"
    found = view(tmp_path, **changes, doing=doing)
    found = View("r", stage="reward_model", path=tmp_path / "progress.json", processes=[])
    assert found.line().startswith(f"reward_model 24/24 · evaluate: {doing} · reward 1.23")
    assert f"evaluate: {doing}" in "\n".join(drawn(found, 120))


def test_line_of_a_finished_run_has_no_eta(tmp_path: Path):
    line = view(tmp_path, step=24, phase="done", waiting_for=None, eta_seconds=0.0).line()
    assert line == "ppo 24/24 · done · reward 1.23 · KL 4.0e-05 · tokens/s 12,346 · entropy 3.5"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"stage": "ppo"}', '{"stage":1,"phase":2,"step":"x","total":1}']
)
def test_damaged_progress_file_is_ignored(tmp_path: Path, text: str):
    path = tmp_path / "progress.json"
    assert read_progress(path) is None
    path.write_text(text)
    assert read_progress(path) is None
