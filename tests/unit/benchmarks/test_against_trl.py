"""The comparison with TRL, without TRL: resumption, settings under its names, curves, evaluation, results."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import __main__ as command
from benchmarks import against_trl, quickstart
from benchmarks.against_trl import environments, jobs, outcome, picture, report
from benchmarks.against_trl.methods import METHODS
from benchmarks.against_trl.outcome import Outcome, Point
from benchmarks.against_trl.sides import OURS, TRL, Run
from benchmarks.parcel_task.evaluation import Evaluation
from benchmarks.parcel_task.store import Store, measure_all
from benchmarks.parcel_task.task import Task, task_of
from examples.parcel_help.corpus import questions
from fairlead.errors import ProcessFailed
from tests.tiny import tiny_causal_lm
from trainer.optim import ppo_learning_rate_factor

SIZES = {"ppo.updates": 3, "ppo.batch_size": 8, "ppo.mini_batch_size": 4, "ppo.learning_rate": 2e-4}


def outcome_of(*golds: float, cpu: float = 1.0, batch: int = 8) -> Outcome:
    points = tuple(Point(number * batch, gold, float(number)) for number, gold in enumerate(golds))
    return Outcome(cpu, 0.5, 100.0, 0.3, points)


@pytest.fixture
def task(source: Path, tmp_path: Path) -> Task:
    return task_of(source, tmp_path, extra=SIZES, samples=2)


def test_trl_jobs_have_our_tasks_and_settings(task: Task, tmp_path: Path):
    configs = {m.name: quickstart.config(task.overrides(m.settings, 5, tmp_path)) for m in METHODS}
    found = {m.name: jobs.job(m, configs[m.name], tmp_path, save_after=[1, 3]) for m in METHODS}
    for name, job in found.items():
        ppo, trainer = configs[name].ppo, job["trainer"]
        assert job["learning_rate"] == 2e-4
        assert job["learning_rate_factors"] == [ppo_learning_rate_factor(n, ppo) for n in range(3)]
        assert job["missing_eos_penalty"] == ppo.missing_eos_penalty == 2.0
        assert (job["reward_bias"], job["save_after"], trainer["seed"]) == (0.25, [1, 3], 5)
        json.dumps(job)
    ppo, rloo, grpo = (found[name]["trainer"] for name in ("ppo", "rloo", "grpo"))
    assert len(found["ppo"]["prompts"]) == ppo["total_episodes"] == 24
    assert (ppo["per_device_train_batch_size"], ppo["num_mini_batches"]) == (8, 2)
    assert found["rloo"]["prompts"] == found["ppo"]["prompts"][:6]
    for trainer in (rloo, grpo):
        assert (trainer["num_generations"], trainer["per_device_train_batch_size"]) == (4, 4)
        assert (trainer["steps_per_generation"], trainer["max_steps"]) == (2, 6)
        assert trainer["beta"] == configs["grpo"].ppo.kl_coefficient
    assert (grpo["loss_type"], grpo["scale_rewards"]) == ("dr_grpo", "none")
    assert configs["ppo"].ppo.critic_init == "reward_model"


def test_key_depends_on_settings_and_not_on_places(task: Task, source: Path, tmp_path: Path):
    def keys(of: Task) -> list[str]:
        return [Run(of, method, side, 0).key() for method in METHODS for side in (OURS, TRL)]

    first = keys(task)
    assert len(set(first)) == 6
    moved = source.rename(tmp_path / "moved")
    (tmp_path / "again").mkdir()
    assert keys(task_of(moved, tmp_path / "again", extra=SIZES, samples=2)) == first
    for changed in (
        dataclasses.replace(task, policy=moved / "sft", reward_model=moved / "reward_model", samples=3),
        task_of(moved, tmp_path, extra={**SIZES, "ppo.kl_coefficient": 0.3}, samples=2),
    ):
        assert not set(keys(changed)) & set(first)


def test_finished_runs_are_kept_and_failed_ones_tried_once(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    measured: list[Run] = []

    def measure(run: Run) -> Outcome:
        measured.append(run)
        if run.side == TRL and run.method.name == "rloo":
            raise ProcessFailed("it broke")
        return outcome_of(0.1, 0.5 + run.seed)

    store, later = Store(tmp_path / "runs", Outcome.of), time.time() + 1_000
    runs = list(against_trl.ordered(task, 2))
    assert [(run.seed, run.side) for run in runs[::6]] == [(0, OURS), (1, TRL)]
    found = measure_all(runs[:4], store, measure, deadline=later)
    assert len(found) == 3
    assert "missing: RLOO, TRL, seed 0: it broke" in capsys.readouterr().err
    found = measure_all(runs, store, measure, deadline=later)
    assert len(measured) == 4 + 9 - 1
    assert len(found) == 10
    assert found[runs[0]] == outcome_of(0.1, 0.5)
    assert not measure_all(runs, Store(tmp_path / "new", Outcome.of), measure, deadline=0.0)
    assert "seed 1: no time left" in capsys.readouterr().err


def test_command_is_killed_with_its_group_at_the_deadline():
    child = (
        "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); sys.stdin.read()"
    )
    before = {process.pid for process in psutil.process_iter()}
    with pytest.raises(quickstart.OutOfTime):
        quickstart.watched(
            [sys.executable, "-c", f"{child}; import time; time.sleep(600)"], deadline=time.time()
        )
    for process in psutil.process_iter(["cmdline"]):
        assert process.pid in before or process.info["cmdline"] != ["sleep", "600"]


def test_curve_reaches_a_gold_reward_between_its_points():
    points = outcome_of(0.0, 0.5, 1.5, 0.2).points
    assert outcome.episodes_to(points, 1.0) == 12.0
    assert outcome.episodes_to(points, 0.5) == 8.0
    assert outcome.episodes_to(points, -1.0) == 0.0
    assert outcome.episodes_to(points, 2.0) == math.inf
    assert outcome.evaluated(24, points=4) == [6, 12, 18, 24]
    assert outcome.evaluated(2, points=4) == [1, 2]


def test_mean_curve_over_seeds():
    curves = [Outcome(1, 1, 1, 0, (Point(8, gold, kl),)) for gold, kl in ((1.0, 4.0), (2.0, 16.0))]
    assert outcome.mean_curve(curves) == [Point(8, 1.5, 9.0)]


def test_results_compare_the_seeds_that_both_sides_have(task: Task, tmp_path: Path):
    method = METHODS[1]
    ours = {seed: outcome_of(0.1, 1.0 + seed, cpu=1.0 + seed) for seed in (0, 1, 2)}
    theirs = {seed: outcome_of(0.1, 0.5, cpu=4.0) for seed in (1, 2, 3)}
    finished = {Run(task, method, OURS, seed): found for seed, found in ours.items()}
    finished |= {Run(task, method, TRL, seed): found for seed, found in theirs.items()}
    (found,) = report.Comparison.of(METHODS, finished)
    assert found.seeds == (1, 2)
    results = report.results([found])
    assert (results["trl_rloo_cpu"].value, results["trl_rloo_cpu"].baseline) == (2.5, 4.0)
    assert results["trl_rloo_cpu"].limit == "≤ 0.5: MISSED"
    assert results["trl_rloo_gold"].value == statistics.fmean([2.0, 3.0])
    # The level is not reached by TRL.
    assert "trl_rloo_episodes_to_gold" not in results
    assert "not reached" in report.table([found])
    picture.draw([found], tmp_path / "gold.png")
    assert (tmp_path / "gold.png").read_bytes().startswith(b"\x89PNG")


def test_policies_are_evaluated_against_the_one_that_they_started_from(task: Task, tmp_path: Path):
    config = quickstart.config(task.overrides(METHODS[0].settings, 0, tmp_path))
    asked = [question.text for question in questions()[:3]]
    evaluation = Evaluation(config, asked, samples=2)
    start = evaluation.evaluated(None)
    assert start.kl == pytest.approx(0.0, abs=1e-4)
    assert evaluation.evaluated(task.policy) == start
    other = evaluation.evaluated(tiny_causal_lm(tmp_path / "other", seed=9))
    assert abs(other.kl) > 0.01


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(("name", "kinds"), [("trl", "ppo rloo grpo"), ("trl_smollm2", "rloo grpo")])
def test_comparison_with_trl_runs(name: str, kinds: str, source: Path, tmp_path: Path):
    for method in METHODS:
        if not environments.is_installed(method.release):
            pytest.skip(f"TRL {method.release} is not installed; `python -m benchmarks trl` does that")
    lines = [json.dumps({"prompt": question.text}) + "\n" for question in questions()[:40]]
    (source / "data" / "prompts.jsonl").write_text("".join(lines))
    file = tmp_path / "found.json"
    assert command.main([name, "--quick", "--json", str(file), "--run", str(source)]) == 0
    found = json.loads(file.read_text())
    assert {f"{name}_{kind}_cpu" for kind in kinds.split()} <= found.keys()
    assert all(min(entry["value"], entry["baseline"]) > 0 for key, entry in found.items() if "cpu" in key)
