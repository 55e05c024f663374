"""Judges, reward models of arms, and the summary, on made-up features of which the truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples.helpful_harmless import judge
from examples.helpful_harmless.ai_feedback import arms, heads, judges, picture, summary, tables, trial
from examples.helpful_harmless.ai_feedback.__main__ import learn
from examples.helpful_harmless.ai_feedback.arms import Arm
from examples.helpful_harmless.ai_feedback.judges import Evidence
from examples.helpful_harmless.ai_feedback.questions import Asked, Split
from examples.helpful_harmless.ai_feedback.trial import Plan, Trial
from fairlead.data.comparisons import Preference

PLAN = Plan(learnt=160, judges=60, seed=3, penalty=3.0)


def _evidence(count: int = 400, *, signal: float = 1.5) -> Evidence:
    rng = np.random.default_rng(5)
    better, worse = rng.normal(size=(2, count, 6))
    better[:, 1] += signal
    pairs = tuple(Preference("asked", f"calm {number}", f"angry {number}") for number in range(count))
    margins = {
        "likelihood": better[:, 0] - worse[:, 0] + 0.2,
        **judges.margins_of_texts(Asked(pairs, np.arange(count))),
        "prompted": np.zeros(count),
    }
    return Evidence(Asked(pairs, np.arange(count) // 2), better, worse, margins)


def _trial(evidence: Evidence, known: list[Arm], repetition: int = 0) -> Trial:
    return trial.run(evidence, known, PLAN, repetition=repetition)


def test_judges_are_right_as_often_as_is_known() -> None:
    evidence = _evidence()
    found = [_trial(evidence, [], repetition).labels for repetition in range(20)]
    for name, accuracy in judges.KNOWN.items():
        assert np.mean([labels[name] for labels in found]) == pytest.approx(accuracy, abs=0.03)
    for labels in found:
        for name in evidence.real:
            assert labels[judges.control(name)].sum() == labels[name].sum()
    # Words separate these answers, lengths do not, and a judge that ties draws.
    assert np.mean([labels["words"] for labels in found]) == 1.0
    assert {np.mean([labels[name] for labels in found]).round(1) for name in ("shorter", "prompted")} == {0.5}
    one = _trial(evidence, [])
    expected = evidence.margins["likelihood"][one.split.learnt_L] > 0
    assert one.labels["likelihood"].tolist() == expected.tolist()


def test_trained_judges_do_not_see_the_pairs_that_they_label() -> None:
    evidence = _evidence(signal=0.0)
    found = [_trial(evidence, [], repetition).labels["head"].mean() for repetition in range(20)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.04)


def test_reward_model_learns_from_the_labels_of_its_arm() -> None:
    evidence = _evidence()
    split = Split(np.arange(40), np.arange(40, 60), np.arange(60, 80))
    better, worse = evidence.better_PF, evidence.worse_PF
    wrong = {judges.RANDOM: np.zeros(40, np.bool_), "right80": np.zeros(40, np.bool_)}

    def weights(arm: Arm) -> list[float]:
        return list(trial.fitted(evidence, split, wrong, [arm], penalty=1.0)[:, 0])

    people = judge.fit(better[:10], worse[:10], penalty=1.0).weights_F
    assert weights(Arm(10)) == pytest.approx(people, abs=1e-4)
    # A judge that is always wrong turns the answers round.
    assert weights(Arm(0, 10, judges.RANDOM)) == pytest.approx(-people, abs=1e-4)
    sides = np.concatenate([better[:10], worse[10:40]]), np.concatenate([worse[:10], better[10:40]])
    expected = judge.fit(*sides, penalty=1.0).weights_F
    assert weights(Arm(10, 30, "right80")) == pytest.approx(expected, abs=1e-4)
    assert weights(Arm(10, 30, "right80", weighted=True))[1] > expected[1]


def test_heads_of_many_labelings_are_those_of_each() -> None:
    rng = np.random.default_rng(8)
    better, worse = rng.normal(size=(2, 30, 50)) * np.linspace(0.5, 20, 50)
    better[:, 3] = worse[:, 3] = 1.0
    right = rng.random((30, 4)) < 0.7
    found = heads.fit(better, worse, right, np.ones((30, 4)), penalty=5.0)
    for column in range(4):
        swapped = np.where(right[:, [column]], better, worse), np.where(right[:, [column]], worse, better)
        expected = judge.fit(*swapped, penalty=5.0).weights_F
        assert found[:, column] == pytest.approx(expected, abs=1e-4)
    # Twice the pairs with half the weight are the same pairs.
    twice = [np.concatenate([side, side]) for side in (better, worse, right)]
    halved = heads.fit(twice[0], twice[1], twice[2], np.full((60, 4), 0.5), penalty=5.0)
    assert halved == pytest.approx(found, abs=1e-5)


def test_summary_of_a_closed_case() -> None:
    people, judged = [Arm(10), Arm(20), Arm(40)], Arm(0, 40, judges.RANDOM)
    learnt, heldout = np.arange(4), np.arange(4, 8)

    def found(margins: dict[Arm, list[float]]) -> Trial:
        labels = {judges.RANDOM: np.array([True, False, True, True])}
        split = Split(learnt, np.arange(0), heldout)
        return Trial(split, labels, {arm: np.array(values) for arm, values in margins.items()})

    low, middle, high = [1.0, -1, -1, 1], [2.0, 0, -1, 1], [2.0, 1, 1, 1]
    tally = summary.Tally(
        np.array([0, 1, 2, 3, 0, 1, 2, 3]),
        [*people, judged],
        [
            found(dict(zip([*people, judged], (low, middle, high, middle), strict=True))),
            found(dict(zip([*people, judged], (low, middle, high, high), strict=True))),
        ],
    )
    result = summary.figures(tally, seed=0)
    rows = result["arms"]
    assert [row["value"] for row in rows] == [0.5, 0.625, 1.0, 0.8125]
    assert result["judges"][0]["value"] == 0.75
    assert rows[3]["above"]["people"]["value"] == 0.8125 - 1.0
    # Half of the way from 20 labels (0.625) to 40 (1.0).
    assert rows[3]["worth"]["value"] == pytest.approx(30.0)
    assert rows[3]["deviation"] == pytest.approx(np.std([0.625, 1.0], ddof=1))
    assert rows[0]["loss"] == pytest.approx((np.log1p(np.exp(-1)) + np.log1p(np.exp(1))) / 2)
    assert rows[0]["confidence"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert rows[0]["interval"][0] <= 0.5 <= rows[0]["interval"][1]


def test_more_right_labels_are_better_and_random_ones_harm(tmp_path: Path) -> None:
    figures = learn(_evidence(), PLAN, repetitions=3)
    rows = {
        Arm(*(row[name] for name in ("people", "judged", "judge", "weighted"))): row
        for row in figures["arms"]
    }
    assert list(rows) == arms.arms(PLAN.learnt, _evidence().real)
    value = {arm: row["value"] for arm, row in rows.items()}
    assert value[Arm(160)] > value[Arm(5)] > 0.55
    assert min(value[Arm(160)], value[Arm(0, 160, "right80")]) > value[Arm(0, 160, judges.RANDOM)] + 0.1
    assert rows[Arm(20, 140, judges.RANDOM)]["above"]["nothing_added"]["interval"][1] < 0
    assert abs(value[Arm(0, 160, judges.RANDOM)] - 0.5) < 0.15
    worth = [rows[arm]["worth"]["value"] for arm in (Arm(0, 160, "right60"), Arm(80))]
    assert worth[0] < worth[1] <= 80
    text = tables.markdown(figures)
    assert "3 repetitions; 400 pairs of 200 questions" in text
    assert f"| 20 | {value[Arm(20)]:.1%} (" in text
    assert f"| 20 | 140 by: judge right in 80% | {value[Arm(20, 140, 'right80')]:.1%} (" in text
    assert "as many errors as" not in text
    picture.draw(figures, tmp_path / "found.svg")
    assert "<svg" in (tmp_path / "found.svg").read_text()


def test_repetitions_differ_and_repeat() -> None:
    evidence, known = _evidence(), [Arm(20)]
    first, again, other = (_trial(evidence, known, repetition) for repetition in (0, 0, 1))
    assert first.margins[Arm(20)].tolist() == again.margins[Arm(20)].tolist()
    assert first.split.learnt_L.tolist() != other.split.learnt_L.tolist()
    changed = trial.run(evidence, known, replace(PLAN, seed=4), repetition=0)
    assert first.split.learnt_L.tolist() != changed.split.learnt_L.tolist()
