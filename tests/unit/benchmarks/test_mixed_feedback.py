"""Mixtures of labels: who says what, how often a judge is right, and the tables."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import mixed_feedback
from benchmarks.mixed_feedback import JUDGES, LABELS, MIXTURES, RANDOM, TUNED, Judge, Mixture
from benchmarks.overoptimization import proxies
from benchmarks.overoptimization.proxies import SINGLE, Curves
from benchmarks.parcel_task.answers import Answer
from benchmarks.parcel_task.best_of import best_of
from benchmarks.parcel_task.lab import Lab
from benchmarks.parcel_task.learning import Curve, Point
from examples.parcel_help import gold

TEXTS = (
    "hello .",
    "stop asking .",
    "hello . have a good day .",
    "it is not our job . good day .",
)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    made = Lab(tmp_path)
    drawn = {prompt: [Answer(text, True) for text in TEXTS] for prompt in made.known[:9]}
    monkeypatch.setattr(proxies, "known", lambda lab: drawn)
    return made


def ordered_as_gold(row: dict[str, object]) -> bool:
    worth = {
        each["rank"]: gold.reward(str(row["prompt"]), each["text"], ended=True)
        for each in row["responses"]  # type: ignore[attr-defined]
    }
    return worth[1] > worth[2]


@pytest.mark.parametrize("judge", [judge for judge in JUDGES if not judge.longer], ids=str)
def test_judge_is_right_as_often_as_it_says(lab: Lab, judge: Judge):
    rows = mixed_feedback.labels(lab, Mixture(0, 4_000, judge), seed=0)
    right = sum(map(ordered_as_gold, rows)) / len(rows)
    assert right == pytest.approx(judge.accuracy, abs=0.025)


def test_judge_that_prefers_the_longer_does_so():
    judge, rng = Judge(1.0, longer=1.0), random.Random(0)
    short, long = Answer("hello .", True), Answer("hello . hello .", True)
    assert not judge.prefers_first(short, long, better=True, rng=rng)
    assert judge.prefers_first(short, short, better=True, rng=rng)


def test_mixtures_of_a_seed_share_their_pairs_and_labels_of_people(lab: Lab):
    whole = mixed_feedback.labels(lab, Mixture(60), seed=1)
    half = mixed_feedback.labels(lab, Mixture(30, 30, RANDOM), seed=1)
    assert half[:30] == whole[:30]
    pairs = [
        {(row["prompt"], *sorted(each["text"] for each in row["responses"])) for row in rows}
        for rows in (whole, half)
    ]
    assert pairs[0] == pairs[1]
    assert mixed_feedback.labels(lab, Mixture(60), seed=2) != whole


def test_every_mixture_has_the_same_number_of_labels():
    assert {one.people + one.judged for one in MIXTURES if one.judge} == {LABELS}
    assert len({one.name for one in MIXTURES}) == len(MIXTURES)
    assert set(TUNED) <= set(MIXTURES)
    assert sum(one.judge == RANDOM for one in MIXTURES) == 3


def test_tables_have_a_line_for_each_mixture(tmp_path: Path):
    rng = random.Random(2)

    def chosen() -> Curves:
        best = best_of(*({"p": [rng.random() for _ in range(32)]} for _ in range(3)))
        return Curves({SINGLE: best}, {SINGLE: 0.75})

    curve = Curve(tuple(Point(update, 1.0, 0.5, 1.25, 9.0, 8, 8) for update in range(1, 6)))
    found = mixed_feedback.Found({one: [chosen(), chosen()] for one in MIXTURES}, {TUNED[2]: [curve]})
    lines = mixed_feedback.report(found).splitlines()
    assert len(lines) == 2 + len(MIXTURES)
    assert lines[2].startswith("| 800 | none | 2 | 0.750 ± 0.000 | ")
    assert "| 400 | 400 by a judge right in 75% | 1 | 1.25 | 0.50 | 1.00 |" in mixed_feedback.report_tuned(
        found
    )
    mixed_feedback.draw(found, tmp_path / "mixed.svg")
    assert (tmp_path / "mixed.svg").read_text().count("<svg") == 1
