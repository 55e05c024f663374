"""Experiment logs: what a slow, failing or missing tool does to the stage, and which run it continues."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fairlead.config import load, parse_overrides
from fairlead.errors import ConfigError
from trainer.experiments import background
from trainer.experiments.background import Background
from trainer.experiments.choice import open_logs
from trainer.experiments.ids import TrackedId
from trainer.experiments.tensorboard import TensorBoard
from trainer.tracking import Tracker


class SlowTool:
    """A tool whose first step waits for `free`, and whose step 2 fails."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.steps: list[int] = []
        self.failed: bool | None = None

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        self.free.wait()
        if step == 2:
            raise OSError("the server\nis away")
        self.steps.append(step)

    def close(self, *, failed: bool) -> None:
        self.failed = failed


def test_slow_tool_never_delays_a_step(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(background, "MAX_WAITING", 5)
    tool = SlowTool()
    log = Background("tool", lambda: tool)
    begun = time.monotonic()
    for step in range(1, 51):
        log.record(step, {"reward": 1.0})
    assert time.monotonic() - begun < 5.0
    tool.free.set()
    log.close(failed=True)
    assert tool.failed is True
    assert tool.steps == sorted(tool.steps)
    assert "tool does not keep up" in caplog.text
    assert "tool did not take step 2; the run continues: OSError: the server is away" in caplog.text
    assert f"tool lacks {50 - len(tool.steps)} steps" in caplog.text


def test_tool_that_hangs_or_cannot_be_opened_delays_the_end_for_a_limited_time(
    caplog: pytest.LogCaptureFixture,
):
    tool = SlowTool()
    log = Background("tool", lambda: tool, close_seconds=0.1)
    log.record(1, {})
    log.close(failed=False)
    assert "has not written everything within 0.1 s" in caplog.text
    tool.free.set()

    def refused() -> SlowTool:
        raise PermissionError("no key")

    log = Background("other", refused)
    for step in range(2_000):
        log.record(step, {})
    log.close(failed=False)
    assert "other gets no figures of this stage; the run continues: PermissionError: no key" in caplog.text


def test_stage_writes_the_same_figures_to_its_logs(tmp_path: Path):
    config = load(
        None, overrides=parse_overrides([f"runs={tmp_path}", "name=tried", "observe.tensorboard=false"])
    )
    assert open_logs("ppo", config, first_step=0) == []
    logs = [Background("board", lambda: TensorBoard(tmp_path / "board", "ppo", first_step=0))]
    with Tracker("ppo", config.folder, total=2, logs=logs) as tracker:
        tracker.record(1, {"reward": 0.5})
        tracker.record(2, {"reward": 0.75})
    read = EventAccumulator(str(tmp_path / "board" / "ppo"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("ppo/reward")] == [(1, 0.5), (2, 0.75)]


def test_tool_that_is_not_installed_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = load(None, overrides=parse_overrides(['observe.trackers=["wandb"]']))
    with pytest.raises(
        ConfigError, match=r"observe.trackers: got .*wandb, which is not installed.*fairlead-rlhf\[wandb\]"
    ):
        open_logs("ppo", config, first_step=0)


def test_interrupted_stage_continues_its_run_and_one_from_scratch_gets_another(tmp_path: Path):
    begun = TrackedId(tmp_path, "mlflow", "ppo", first_step=0)
    assert begun.last() is None
    begun.note("a", finished=False)
    assert TrackedId(tmp_path, "mlflow", "ppo", first_step=0).last() == "a"  # before its first checkpoint
    assert TrackedId(tmp_path, "mlflow", "ppo", first_step=3).last() == "a"
    assert TrackedId(tmp_path, "wandb", "ppo", first_step=3).last() is None
    begun.note("a", finished=True)
    assert TrackedId(tmp_path, "mlflow", "ppo", first_step=3).last() == "a"  # more updates
    assert TrackedId(tmp_path, "mlflow", "ppo", first_step=0).last() is None  # --force
    (tmp_path / "experiments.json").write_text('{"mlflow/ppo": 3')
    assert TrackedId(tmp_path, "mlflow", "ppo", first_step=3).last() is None
