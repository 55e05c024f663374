"""The measurement of reward hacking, without training: fits, best-of-n by a proxy, what a guard saves."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.overoptimization import fits, learning_runs, picture, proxies, report
from benchmarks.overoptimization.learning_runs import GUARDS, PLAIN, LearningRun
from benchmarks.overoptimization.proxies import SINGLE, Curves, GridRun, GuardRun
from benchmarks.parcel_task import answers, store
from benchmarks.parcel_task.answers import Answer
from benchmarks.parcel_task.best_of import BestOf, best_of
from benchmarks.parcel_task.lab import POLICY, Lab
from benchmarks.parcel_task.learning import Curve, Point
from benchmarks.parcel_task.over_seeds import interval, shown
from fairlead.clients.best_of_n import divergence, expected_best
from fairlead.errors import ConfigError
from fairlead.rounds.files import write_rows

ALPHA, BETA = 1.3, 0.25
DISTANCES = [math.sqrt(divergence(2**power)) for power in range(11)]


def test_fit_recovers_the_coefficients_of_best_of_n():
    found = fits.fit("best of n", DISTANCES, [d * (ALPHA - BETA * d) for d in DISTANCES])
    assert (found.alpha, found.beta) == pytest.approx((ALPHA, BETA))
    assert found.residual < 1e-12
    assert found.peak == pytest.approx(ALPHA / (2 * BETA))
    assert found.at(2.0) == pytest.approx(2 * (ALPHA - 2 * BETA))


def test_fit_recovers_the_coefficients_of_reinforcement_learning_from_noisy_gains():
    rng = np.random.default_rng(0)
    distances = [0.0, *np.linspace(0.1, 6, 400).tolist()]
    exact = [d * (ALPHA - BETA * math.log(d)) if d else 0.0 for d in distances]
    found = fits.fit("reinforcement learning", distances, (exact + rng.normal(0, 0.1, len(exact))).tolist())
    assert (found.alpha, found.beta) == pytest.approx((ALPHA, BETA), abs=0.02)
    assert found.residual == pytest.approx(0.1, abs=0.01)
    assert found.peak is not None
    around = [found.at(found.peak * factor) for factor in (0.95, 1.0, 1.05)]
    assert max(around) == around[1]


def test_law_without_a_loss_has_no_peak():
    assert fits.fit("best of n", DISTANCES, [d * (1 + d) for d in DISTANCES]).peak is None
    assert (
        fits.fit("reinforcement learning", DISTANCES, [d * (1 + math.log(d or 1)) for d in DISTANCES]).peak
        is None
    )


def test_points_at_one_distance_determine_nothing():
    with pytest.raises(ValueError, match="do not determine"):
        fits.fit("best of n", [0.0, 1.0, 1.0], [0.0, 0.5, 0.6])


def test_mean_of_fits_to_seeds_is_the_fit_to_their_mean():
    gains = [[d * (ALPHA + shift - BETA * d * d) for d in DISTANCES] for shift in (-0.2, 0.1, 0.4)]
    mean = fits.mean([fits.fit("best of n", DISTANCES, own) for own in gains])
    whole = fits.fit("best of n", DISTANCES, np.mean(gains, axis=0).tolist())
    assert (mean.alpha, mean.beta) == pytest.approx((whole.alpha, whole.beta))


def test_interval_is_that_of_student():
    assert interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6))
    assert math.isnan(interval([1.0])[1])
    assert shown([1.0, 2.0, 3.0]) == "2.00 ± 2.48"
    assert shown([-0.001]) == "0.00"


def test_best_of_n_agrees_with_the_estimator_of_the_client():
    rng = random.Random(3)
    scores = [rng.choice((0.5, 1.0, 2.0, 2.5)) for _ in range(32)]
    golds = [rng.random() for _ in scores]
    found = best_of({"p": scores}, {"p": golds}, {"p": [4.0] * 32})
    assert found.n == (1, 2, 4, 8, 16, 32)
    assert found.gold[0] == pytest.approx([expected_best(scores, n, golds) for n in found.n], abs=1e-5)
    assert found.proxy[0] == pytest.approx([expected_best(scores, n) for n in found.n], abs=1e-5)
    assert found.words == (4.0,) * 6
    assert found.gold_gains[0, 0] == 0.0


def test_length_control_leaves_no_line_of_length():
    rng = random.Random(4)
    words = {prompt: [float(rng.randrange(3, 30)) for _ in range(50)] for prompt in "ab"}
    scores = {prompt: [0.3 * count + rng.random() for count in own] for prompt, own in words.items()}
    assert proxies.slope_of_length(scores, words) == pytest.approx(0.3, abs=0.02)
    assert proxies.slope_of_length(proxies.without_length(scores, words), words) == pytest.approx(0, abs=1e-9)


def test_accuracy_counts_pairs_of_different_gold():
    golds = {"a": [0.0, 1.0, 1.0, 0.0]}
    assert proxies.ordered_as_gold({"a": [0.0, 2.0, 3.0, 1.0]}, golds) == 1.0
    assert proxies.ordered_as_gold({"a": [0.0, -2.0, 3.0, 3.0]}, golds) == 0.25


def test_labels_of_fewer_tasks_are_the_first_of_those_of_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    prompt = Lab(tmp_path).known[0]
    drawn = {
        prompt: [
            Answer(text, True) for text in ("hello .", "stop asking .", "good day .", "our shop .", "a .")
        ]
    }
    monkeypatch.setattr(proxies, "known", lambda lab: drawn)
    few, many = (proxies.people_labels(Lab(tmp_path), count, seed=1) for count in (3, 9))
    assert many[:3] == few
    assert sorted(each["rank"] for each in few[0]["responses"]) == [1, 2, 3, 4]


def curve(golds: list[float], *, alerts: tuple[dict[str, object], ...] = ()) -> Curve:
    points = [
        Point(place + 1, 0.5 * place, 0.4 * place, gold, 10.0, 16, 16) for place, gold in enumerate(golds)
    ]
    return Curve(tuple(points), alerts)


def found_of(tmp_path: Path) -> report.Found:
    lab = Lab(tmp_path)
    rng = random.Random(5)
    bests = [
        best_of(
            *(
                {"p": [rng.random() for _ in range(32)], "q": [rng.random() for _ in range(32)]}
                for _ in range(3)
            )
        )
        for _ in range(4)
    ]
    alert = {"signal": "overconfidence", "update": 4, "value": 0.2, "threshold": 0.15, "level": "stop"}
    rising, falling = (
        [0.2, 0.5, 0.8, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0],
        [0.2, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8],
    )
    plain = {LearningRun(lab, POLICY, 100, PLAIN, seed): curve(rising, alerts=(alert,)) for seed in (0, 1)}
    guarded = {LearningRun(lab, POLICY, 100, GUARDS[0], seed): curve(falling) for seed in (0, 1)}
    return report.Found(
        {GridRun(lab, POLICY, 100, seed): Curves({SINGLE: bests[seed]}, {SINGLE: 0.7}) for seed in (0, 1)},
        {GuardRun(lab, 0): Curves({SINGLE: bests[2], "other": bests[3]}, {SINGLE: 0.7, "other": 0.8})},
        plain | guarded,
        start=0.2,
    )


def test_tables_say_what_guards_save_and_what_gold_confirms(tmp_path: Path):
    found = found_of(tmp_path)
    text = report.tables(found)
    line = next(one for one in text.splitlines() if one.startswith(f"| {GUARDS[0]}"))
    # Means of the last four updates: 0.8 with the guard, 0.15 without it.
    assert line.split(" | ")[2] == "0.65 ± 0.00"
    stop = next(one for one in text.splitlines() if "stop by `overconfidence`" in one)
    # The mean of updates 2 to 4 is 0.7.
    assert stop.split(" | ")[2] == "0.55 ± 0.00"
    assert "update 4, 4" in stop
    plain = next(one for one in text.splitlines() if one.startswith(f"| {PLAIN}"))
    gained, claimed = 0.15 - 0.2, report.PEOPLE_UNIT * 0.4 * 7.5
    assert plain.split(" | ")[-1] == f"{gained / claimed:.0%} |"
    assert report.results(found)[f"rloo_{POLICY.name}_100"].value == pytest.approx(gained)
    for suffix in ("svg", "png"):
        picture.draw_all(found, tmp_path, suffix)
    assert len(list(tmp_path.glob("overoptimization-*.svg"))) == 3


def test_finished_runs_are_read_as_they_were_written(tmp_path: Path):
    found = found_of(tmp_path)
    for number, (outcome, read) in enumerate(
        [(next(iter(found.guards.values())), Curves.of), (next(iter(found.learning.values())), Curve.of)]
    ):
        kept = store.Store(tmp_path / "kept", read)
        kept.put("run", str(number), outcome)
        assert kept.get("run", str(number)) == outcome


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"of": 1}'])
def test_damaged_kept_run_is_named_before_anything_is_measured(text: str, tmp_path: Path):
    found = found_of(tmp_path)
    kept = store.Store(tmp_path / "kept", Curves.of)
    [(damaged, outcome)] = found.guards.items()
    kept.put(damaged.name, damaged.key(), outcome)
    [file] = (tmp_path / "kept").iterdir()
    file.write_text(text)
    measured: list[object] = []
    with pytest.raises(ConfigError, match=f"{file}: got .damaged .* if you remove it, the same command"):
        store.measure_all([GuardRun(damaged.lab, 7), damaged], kept, measured.append, deadline=math.inf)
    assert not measured
    assert file.read_text() == text


@pytest.mark.parametrize("lost", [1, 30])
def test_damaged_answers_are_named(lost: int, tmp_path: Path):
    file = tmp_path / "answers.jsonl"
    write_rows(file, [{"prompt": prompt, "answers": [["said", True]] * 2} for prompt in ("a", "b")])
    options = {"samples": 2, "limit": 4, "seed": 0}
    assert answers.kept(file, tmp_path, ["a", "b"], **options)["b"] == [answers.Answer("said", True)] * 2
    text = file.read_text().splitlines(keepends=True)
    file.write_text(text[0] if lost == 1 else "".join(text)[:-lost])
    with pytest.raises(ConfigError, match=f"{file}: got .damaged"):
        answers.kept(file, tmp_path, ["a", "b"], **options)


def test_every_run_has_a_name_of_its_own(tmp_path: Path):
    lab = Lab(tmp_path)
    known = [one for seed in (0, 1) for one in learning_runs.runs(lab, [POLICY], [100, 400], seed)]
    assert len({run.name for run in known}) == len({run.key() for run in known}) == len(known)


def test_nothing_is_trained_on_heldout_prompts(tmp_path: Path):
    lab = Lab(tmp_path)
    asked = [json.loads(line)["prompt"] for line in lab.prompts().read_text().splitlines()]
    assert len(asked) + len(lab.heldout) == 144
    assert not set(asked) & set(lab.heldout)
    assert BestOf.of({"n": [1], "proxy": [[1.0]], "gold": [[1.0]], "words": [2.0]}).distances == [0.0]


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("name", ["overoptimization", "lost_tasks", "mixed_feedback"])
def test_experiments_run(name: str, tmp_path: Path):
    file = tmp_path / "found.json"
    assert command.main([name, "--quick", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found
    assert all(math.isfinite(entry["value"]) for entry in found.values())
