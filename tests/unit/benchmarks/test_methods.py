"""The comparison of methods, without running it: keys, figures, the table, labels of pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import methods, pareto, quickstart, word_count
from benchmarks.methods import report
from benchmarks.methods.outcome import Outcome, Seeds
from benchmarks.methods.recipes import recipes
from benchmarks.parcel_task.evaluation import Evaluated, Evaluation
from benchmarks.seed_points import spread
from examples.parcel_help import methods as quickstart_methods
from examples.parcel_help.corpus import questions
from tests.tiny import tiny_causal_lm

START = Outcome(gold=0.2, kl=0.0, win_rate=0.5, score=-0.3, words=18.0)


def outcome_of(gold: float, kl: float, cpu: float = 10.0) -> Outcome:
    return Outcome(gold, kl, 0.7, 1.0, 16.0, 64, cpu, cpu / 2, cpu / 3)


@pytest.fixture
def inputs(source: Path, tmp_path: Path) -> methods.Inputs:
    names = [question.text for question in questions()[:20]]
    (source / "data" / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": name}) + "\n" for name in names)
    )
    responses = [{"text": "hello .", "rank": 1}, {"text": "stop asking .", "rank": 2}]
    rows = [json.dumps({"prompt": name, "responses": responses}) + "\n" for name in names]
    (source / "data" / "round-0").mkdir()
    (source / "data" / "round-0" / "rankings.jsonl").write_text("".join(rows))
    return methods.inputs_of(source, tmp_path, extra={}, samples=2)


def test_no_method_learns_from_heldout_prompts(inputs: methods.Inputs):
    heldout = set(inputs.task.heldout)
    assert heldout
    for file in (inputs.task.prompts, inputs.rankings):
        asked = {json.loads(line)["prompt"] for line in file.read_text().splitlines()}
        assert asked
        assert not asked & heldout


def test_every_method_of_the_quickstart_is_compared_and_has_a_key_of_its_own(inputs: methods.Inputs):
    known = recipes()
    assert {*quickstart_methods.METHODS, "dpo", "kto", "best-of-16"} == {recipe.name for recipe in known}
    runs = [methods.Run(inputs, recipe, seed) for recipe in known for seed in (0, 1)]
    keys = [run.key() for run in runs]
    assert len(set(keys)) == len({run.name for run in runs}) == 2 * len(known)
    inputs.rankings.write_text(inputs.rankings.read_text().replace("hello", "good day"))
    changed = {run.recipe.name for run, key in zip(runs, keys, strict=True) if run.key() != key}
    assert changed == {"dpo", "kto"}


def test_figures_are_means_over_finished_seeds(inputs: methods.Inputs, tmp_path: Path):
    known = recipes()
    finished = {methods.Run(inputs, known[0], seed): outcome_of(1.0 + seed, 1.0) for seed in (0, 2)}
    finished[methods.Run(inputs, known[1], 0)] = outcome_of(3.0, 4.0, cpu=5.0)
    ppo, rloo = methods.by_method(known, finished)
    assert (ppo.mean("gold"), ppo.deviation("gold"), rloo.deviation("gold")) == (2.0, math.sqrt(2), None)
    lines = report.table([ppo, rloo], START).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| RLOO", "| PPO", "| SFT"]
    assert "2.00 ± 1.41" in lines[3]
    found = report.results([ppo, rloo], START)
    assert (found["methods_rloo_gold"].value, found["methods_rloo_gold"].baseline) == (3.0, 0.2)
    assert found["methods_rloo_whole_cpu_seconds"].ratio == 0.5
    report.draw([ppo, rloo], START, tmp_path / "methods.svg")
    assert (tmp_path / "methods.svg").read_text().count("<svg") == 1


def test_win_rate_compares_with_the_policy_that_all_start_from(inputs: methods.Inputs):
    count = len(inputs.task.heldout)
    start = Evaluated(((0.0, 1.0),) * count, 0.0, 0.0, 5.0)
    better = Evaluated(((1.0, 2.0),) * count, 3.0, 1.0, 4.0)
    assert methods.outcome(start, start, inputs.task).win_rate == 0.5
    assert methods.outcome(better, start, inputs.task) == Outcome(1.5, 3.0, 0.875, 1.0, 4.0)


def test_score_of_an_evaluation_is_that_of_the_reward_model(inputs: methods.Inputs, tmp_path: Path):
    config = quickstart.config(inputs.task.overrides({}, 0, tmp_path))
    asked, reward_model = inputs.task.heldout[:2], inputs.task.reward_model
    evaluation = Evaluation(config, asked, samples=2, reward_model=reward_model)
    start = evaluation.evaluated(None)
    assert math.isfinite(start.score)
    assert evaluation.evaluated(tiny_causal_lm(tmp_path / "other", seed=9)).score != start.score
    assert [len(group) for group in start.golds] == [2, 2]


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        ([], []),
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.2, 0.28, 0.3, 0.9], [0.16, 0.26, 0.36, 0.9]),
        ([0.0, 0.0, 0.04], [-0.08667, 0.01333, 0.11333]),
    ],
)
def test_labels_keep_their_distance(wanted: list[float], places: list[float]):
    assert spread(wanted, step=0.1) == pytest.approx(places, abs=1e-4)


def test_conflicting_rewards_have_a_key_for_each_weight_and_limit(inputs: methods.Inputs, tmp_path: Path):
    runs = [methods.Run(inputs, recipe, 0) for recipe in pareto.recipes(inputs.task.reward_model)]
    assert len({run.key() for run in runs}) == len(runs) == len(pareto.WEIGHTS) + len(pareto.WORDS)
    sections = [
        quickstart.config(inputs.task.overrides(run.recipe.changed, 0, tmp_path)).reward for run in runs
    ]
    assert [section.combined.terms["short"].weight for section in sections[:-2]] == list(pareto.WEIGHTS)
    score = {"helpful": 0.5, "words": word_count.tens(["p"], ["one two three"])[0]}
    assert sections[-1].combined.score(score, multiplier=2.0) == 0.5 - 2.0 * (0.3 - 1.2)
    assert "| SFT |" in pareto.table([Seeds("a", "A", [outcome_of(1.0, 2.0)])], START)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_all_methods_run(inputs: methods.Inputs, source: Path, tmp_path: Path):
    file = tmp_path / "found.json"
    assert inputs.rankings.exists()
    assert command.main(["methods", "--quick", "--json", str(file), "--run", str(source)]) == 0
    found = json.loads(file.read_text())
    assert {f"methods_{recipe.name}_gold" for recipe in recipes()} <= found.keys()
    assert command.main(["pareto", "--quick", "--json", str(file), "--run", str(source)]) == 0
    assert len(json.loads(file.read_text())) == 2 * len(pareto.WEIGHTS + pareto.WORDS)
