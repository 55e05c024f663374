"""The tracker: phases follow one another without gaps, and long work within a phase is reported."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from prometheus_client import CollectorRegistry

from fairlead import watchdog
from fairlead.config import RunFolder
from fairlead.metrics import StageMetrics
from trainer.tracking import Tracker


def test_phases_follow_one_another_and_their_seconds_add_up(tmp_path):
    folder = RunFolder(tmp_path / "run")
    begun = time.time()
    with Tracker("ppo", folder, total=2) as tracker:
        tracker.phase("wait")
        tracker.phase("train")
        tracker.phase("train")  # continues
        until = time.time() + 0.02
        while time.time() < until:
            pass
        spent = tracker.seconds_per_phase()
        elapsed = time.time() - begun
        tracker.phase("publish")
        again = tracker.seconds_per_phase()
    lines = [json.loads(line) for line in folder.phases.read_text().splitlines()]
    assert all(one["end"] == after["start"] for one, after in itertools.pairwise(lines))
    assert [line["phase"] for line in lines] == ["start", "wait", "train", "train", "publish", "publish"]
    assert spent["train"] >= 0.02
    assert sum(spent.values()) == pytest.approx(elapsed, abs=0.01)
    assert sum(again.values()) < spent["train"]


def test_progress_names_work_without_steps_and_estimates_no_end_of_it(tmp_path):
    folder = RunFolder(tmp_path / "run")

    def now() -> dict[str, object]:
        return json.loads(folder.progress.read_text())

    with Tracker("reward_model", folder, total=2) as tracker:
        tracker.phase("train")
        tracker.record(1, {"loss": 0.5})
        tracker.record(2, {"loss": 0.4})
        tracker.phase("evaluate")
        tracker.doing("scoring demonstrations", 0, 2048)
        assert (now()["phase"], now()["doing"]) == ("evaluate", "scoring demonstrations, 0 of 2,048")
        assert now()["eta_seconds"] is None
        tracker.doing("fitting")
        assert now()["doing"] == "fitting"
        tracker.phase("done")
        assert (now()["doing"], now()["eta_seconds"]) == (None, 0.0)


def test_reports_while_waiting_for_rollouts_extend_the_limit_of_a_hang_and_not_the_shown_time(tmp_path):
    def waiting() -> watchdog.Wait:
        return watchdog.PROCESS.longest()["phase"]

    with Tracker("ppo", RunFolder(tmp_path / "run"), total=2) as tracker:
        tracker.phase("wait")
        began, since = waiting().begun, waiting().since
        tracker.waiting_for("8 rollouts")
        assert waiting().limited
        assert waiting().begun > began
        assert waiting().since == since
        tracker.phase("done")
        assert not waiting().limited


def test_stage_without_services_reports_steps_phases_and_figures(tmp_path):
    registry = CollectorRegistry()
    metrics = StageMetrics("reward_model", registry)

    def value(metric: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"fairlead_stage_{metric}", {"stage": "reward_model", **labels})

    assert value("last_step_timestamp_seconds") is None
    with Tracker("reward_model", RunFolder(tmp_path / "run"), total=9, metrics=metrics) as tracker:
        begun = value("last_step_timestamp_seconds")
        assert begun is not None
        tracker.phase("train")
        assert [value("phase", phase=phase) for phase in ("start", "train", "done")] == [0, 1, 0]
        tracker.record(4, {"loss": 0.5})
        assert (value("step"), value("total_steps"), value("figure", name="loss")) == (4, 9, 0.5)
        assert (value("last_step_timestamp_seconds") or 0) >= begun
        tracker.phase("done")
    lines = [json.loads(line) for line in (tmp_path / "run" / "phases.jsonl").read_text().splitlines()]
    logged = sum(line["end"] - line["start"] for line in lines if line["phase"] == "train")
    assert value("phase_seconds_total", phase="train") == pytest.approx(logged, abs=0.01)
    ended = value("phase_seconds_total", phase="done")
    assert value("phase_seconds_total", phase="done") == ended
