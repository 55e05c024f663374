"""The tracker: phases follow one another without gaps, and long work within a phase is reported."""

from __future__ import annotations

import itertools
import json
import time

import pytest

from fairlead import watchdog
from fairlead.config import RunFolder
from trainer.tracking import Tracker


def test_phases_follow_one_another_and_their_seconds_add_up(tmp_path):
    folder = RunFolder(tmp_path / "run")
    begun = time.time()
    with Tracker("ppo", folder, total=2, tensorboard=False) as tracker:
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

    with Tracker("reward_model", folder, total=2, tensorboard=False) as tracker:
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

    with Tracker("ppo", RunFolder(tmp_path / "run"), total=2, tensorboard=False) as tracker:
        tracker.phase("wait")
        began, since = waiting().begun, waiting().since
        tracker.waiting_for("8 rollouts")
        assert waiting().limited
        assert waiting().begun > began
        assert waiting().since == since
        tracker.phase("done")
        assert not waiting().limited
