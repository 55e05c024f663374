"""Labels that arrive while PPO runs, compared with known scores; and invalid lines."""

from __future__ import annotations

import json
import logging
import math
import random
from pathlib import Path

import pytest

from fairlead.config import load
from tests.tiny import tiny_tokenizer
from trainer.ppo.fresh_labels import FreshLabels
from trainer.ppo.monitor import Monitor

FORESEEN = pytest.approx(1 / (1 + math.exp(-1)) - 1)
"""Of one pair, scored 1 apart, that people order alike."""
SCORES = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 1.0}


def append(path: Path, *rows: object, end: str = "\n") -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join((row if isinstance(row, str) else json.dumps(row)) + end for row in rows))


def ranking(*texts: str, prompt: str = "p") -> dict[str, object]:
    return {"prompt": prompt, "responses": [{"text": t, "rank": n} for n, t in enumerate(texts, start=1)]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fresh.jsonl"


def labels(path: Path, *, num_pairs: int) -> FreshLabels:
    found = FreshLabels(path, num_pairs=num_pairs)
    found.remember(("p", text, score) for text, score in SCORES.items())
    return found


def sigmoid(gap: float) -> float:
    return 1 / (1 + math.exp(-gap))


def test_overconfidence_by_hand(path: Path) -> None:
    found = labels(path, num_pairs=6)
    assert found.overconfidence() is None
    # a > b (by 1) and a > c (by 2) are predicted, c > b is not.
    append(path, ranking("a", "c", "b"))
    assert found.overconfidence() is None
    # b > a is not predicted, b > d is; two equal scores claim nothing and predict nothing.
    append(path, {"prompt": "p", "chosen": "b", "rejected": "a"}, ranking("c", "d"), ranking("b", "d"))
    claimed = (4 * sigmoid(1) + sigmoid(2) + 0.5) / 6
    assert found.overconfidence() == pytest.approx(claimed - 3 / 6)


def test_only_the_newest_pairs_count(path: Path) -> None:
    found = labels(path, num_pairs=2)
    append(path, ranking("c", "a"), ranking("c", "b"))
    assert found.overconfidence() == pytest.approx((sigmoid(2) + sigmoid(1)) / 2)
    append(path, ranking("a", "b"), ranking("a", "b"))
    assert found.overconfidence() == pytest.approx(sigmoid(1) - 1)


def test_scores_far_apart_claim_certainty(path: Path) -> None:
    found = labels(path, num_pairs=1)
    found.remember([("p", "far", -1e30)])
    append(path, ranking("far", "a"))
    assert found.overconfidence() == 1


def test_labels_drawn_from_the_claimed_probabilities_show_no_overconfidence(path: Path) -> None:
    found, rng = FreshLabels(path, num_pairs=20_000), random.Random(0)
    scores = {str(n): rng.gauss(0, 1.5) for n in range(200)}
    found.remember(("p", text, score) for text, score in scores.items())
    for _ in range(20_000):
        one, other = rng.sample(sorted(scores), k=2)
        better = rng.random() < sigmoid(scores[one] - scores[other])
        append(path, ranking(one, other) if better else ranking(other, one))
    assert found.overconfidence() == pytest.approx(0, abs=0.01)


def test_rankings_of_unknown_answers_are_ignored(path: Path) -> None:
    found = labels(path, num_pairs=1)
    append(path, ranking("a", "unknown"), ranking("a", "b", prompt="another"))
    assert found.overconfidence() is None
    found.remember([("another", "a", 0.0), ("another", "b", 1.0)])
    append(path, ranking("a", "b", prompt="another"))
    assert found.overconfidence() == pytest.approx(sigmoid(1))


def test_unfinished_line_is_read_when_complete(path: Path) -> None:
    found = labels(path, num_pairs=1)
    text = json.dumps(ranking("a", "b"))
    append(path, text[:20], end="")
    assert found.overconfidence() is None
    append(path, text[20:])
    assert found.overconfidence() == FORESEEN


@pytest.mark.parametrize(
    "bad", ["{", "[]", "\x00", "[" * 100_000, '{"prompt": "p"}', '{"prompt": 1, "responses": []}', "\udcff"]
)
def test_invalid_line_is_logged_and_skipped(path: Path, bad: str, caplog: pytest.LogCaptureFixture) -> None:
    found = labels(path, num_pairs=1)
    with path.open("wb") as file:
        file.write(bad.encode("utf-8", "surrogateescape") + b"\n")
    append(path, ranking("a", "b"))
    with caplog.at_level(logging.WARNING):
        assert found.overconfidence() == FORESEEN
    assert "fresh.jsonl:1" in caplog.text


def test_file_replaced_by_a_shorter_one_is_read_from_its_start(path: Path) -> None:
    found = labels(path, num_pairs=1)
    append(path, ranking("b", "a"), ranking("b", "a"))
    assert found.overconfidence() == pytest.approx(sigmoid(1))
    path.write_text("")
    append(path, ranking("a", "b"))
    assert found.overconfidence() == FORESEEN


def test_labels_contradict_the_reward_model_above_the_limit_of_the_guard(tmp_path: Path) -> None:
    monitor = Monitor(load(overrides={"runs": str(tmp_path)}), tiny_tokenizer())
    found = [monitor.is_contradicted({"guard_overconfidence": value}) for value in (0.1, 0.15, 0.16)]
    assert found == [False, False, True]
    assert not monitor.is_contradicted({})
