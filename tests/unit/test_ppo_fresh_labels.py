"""Labels that come in while PPO runs, against scores that are known; and what a bad line does."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from trainer.ppo.fresh_labels import FreshLabels

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


def test_the_share_by_hand(path: Path) -> None:
    found = labels(path, num_pairs=6)
    assert found.share() is None
    # a > b and a > c are foreseen, c > b is not.
    append(path, ranking("a", "c", "b"))
    assert found.share() is None
    # b > a is not foreseen; two equal scores foresee nothing.
    append(path, {"prompt": "p", "chosen": "b", "rejected": "a"}, ranking("c", "d"), ranking("b", "d"))
    assert found.share() == pytest.approx(3 / 6)


def test_only_the_newest_pairs_count(path: Path) -> None:
    found = labels(path, num_pairs=2)
    append(path, ranking("c", "a"), ranking("c", "b"))
    assert found.share() == 0
    append(path, ranking("a", "b"))
    assert found.share() == 0.5
    append(path, ranking("a", "c"))
    assert found.share() == 1


def test_answers_that_nobody_gave_say_nothing(path: Path) -> None:
    found = labels(path, num_pairs=1)
    append(path, ranking("a", "unknown"), ranking("a", "b", prompt="another"))
    assert found.share() is None
    found.remember([("another", "a", 0.0), ("another", "b", 1.0)])
    append(path, ranking("a", "b", prompt="another"))
    assert found.share() == 0


def test_a_line_under_the_pen_waits(path: Path) -> None:
    found = labels(path, num_pairs=1)
    text = json.dumps(ranking("a", "b"))
    append(path, text[:20], end="")
    assert found.share() is None
    append(path, text[20:])
    assert found.share() == 1


@pytest.mark.parametrize(
    "bad", ["{", "[]", "\x00", "[" * 100_000, '{"prompt": "p"}', '{"prompt": 1, "responses": []}', "\udcff"]
)
def test_a_bad_line_is_told_and_passed_over(path: Path, bad: str, caplog: pytest.LogCaptureFixture) -> None:
    found = labels(path, num_pairs=1)
    with path.open("wb") as file:
        file.write(bad.encode("utf-8", "surrogateescape") + b"\n")
    append(path, ranking("a", "b"))
    with caplog.at_level(logging.WARNING):
        assert found.share() == 1
    assert "fresh.jsonl:1" in caplog.text


def test_a_file_that_is_replaced_by_a_shorter_one_is_read_from_its_start(path: Path) -> None:
    found = labels(path, num_pairs=1)
    append(path, ranking("b", "a"), ranking("b", "a"))
    assert found.share() == 0
    path.write_text("")
    append(path, ranking("a", "b"))
    assert found.share() == 1
