"""The gate: accuracy on pairs of held-out people against a plain count, and when it stops."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from fairlead.judgments.calibration import expected_calibration_error
from fairlead.rounds.gate import CHANCE, MIN_RANKINGS, compare, measuring_pairs, scorer


def ranking(prompt: str, order: str) -> dict[str, Any]:
    """Return a ranking of texts of one letter, the best first."""
    return {"prompt": prompt, "responses": [{"text": t, "rank": place} for place, t in enumerate(order, 1)]}


def test_pairs_that_training_has_seen_do_not_measure() -> None:
    tie = {"prompt": "p", "responses": [{"text": "x", "rank": 1}, {"text": "y", "rank": 1}]}
    groups = measuring_pairs([ranking("p", "abc"), ranking("q", "ab"), tie], [ranking("p", "ba")])
    assert groups == [[('"p"', "a", "c"), ('"p"', "b", "c")], [('"q"', "a", "b")]]


def test_accuracy_and_difference_equal_a_plain_count() -> None:
    rng = random.Random(0)
    heldout = [ranking(f"p{n}", "".join(rng.sample("abcd", 3))) for n in range(40)]
    keys = [(json.dumps(f"p{n}"), text) for n in range(40) for text in "abcd"]
    new, old = ({key: float(rng.randrange(4)) for key in keys} for _ in range(2))
    report = compare(measuring_pairs(heldout, []), scorer(new), scorer(old), seed=1)
    counts = []
    for scores in (new, old):
        right = 0.0
        for one in heldout:
            texts = [answer["text"] for answer in one["responses"]]
            for better, worse in itertools.combinations(texts, 2):
                gap = scores[json.dumps(one["prompt"]), better] - scores[json.dumps(one["prompt"]), worse]
                right += 1.0 if gap > 0 else 0.5 if gap == 0 else 0.0
        counts.append(right / 120)
    assert report.pairs == 120
    assert [report.accuracy, report.accuracy_before] == pytest.approx(counts)
    assert report.difference == pytest.approx(counts[0] - counts[1])
    margins = [
        new[json.dumps(one["prompt"]), better["text"]] - new[json.dumps(one["prompt"]), worse["text"]]
        for one in heldout
        for better, worse in itertools.combinations(one["responses"], 2)
    ]
    assert report.ece == pytest.approx(expected_calibration_error(margins))
    assert report.longer_wins == 0.5  # all are of one word
    assert report.interval is not None
    assert report.interval[0] < report.difference < report.interval[1]


@pytest.mark.parametrize(
    ("rankings", "wrong", "first", "passes"),
    [
        (40, 30, False, False),  # far worse than a model that is always right
        (40, 0, False, True),
        (40, 1, False, True),  # worse, but within chance
        (40, 35, True, False),  # the first model, worse than a coin
        (40, 10, True, True),
        (MIN_RANKINGS - 1, MIN_RANKINGS - 1, False, True),  # too few to decide
        (0, 0, False, True),
    ],
)
def test_gate_stops_only_a_model_that_is_measurably_worse(
    rankings: int, wrong: int, first: bool, passes: bool
) -> None:
    groups = [[(json.dumps(f"{n}"), "a", "b")] for n in range(rankings)]
    right = {(json.dumps(f"{n}"), text): float(text == "a") for n in range(rankings) for text in "ab"}
    new = {key: -score if int(json.loads(key[0])) < wrong else score for key, score in right.items()}
    report = compare(groups, scorer(new), None if first else scorer(right), seed=0)
    assert report.passes is passes
    assert report.as_json()["passes"] is passes
    assert report.measured_on == "held-out people"
    if rankings:
        assert report.accuracy == pytest.approx(1 - wrong / rankings)
        assert report.accuracy_before == (CHANCE if first else 1.0)
    assert ("no decision" in str(report)) is (0 < rankings < MIN_RANKINGS)
