"""Labelers who look on: every update is ranked once, those to one prompt against one another."""

from __future__ import annotations

import json
from pathlib import Path

from examples.parcel_help import gold
from examples.parcel_help.fresh_labels import Labeler, labelling

PROMPT = "my lamp was charged twice ."
GOOD = "hello . we will refund one charge . have a good day ."
POOR = "stop asking ."


def sample(update: int, text: str, prompt: str = PROMPT) -> dict[str, object]:
    return {"update": update, "task": 0, "prompt": prompt, "text": text, "ended": True, "score": 0.0}


def write(path: Path, *rows: dict[str, object], mode: str = "a") -> None:
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_update_is_ranked_once(tmp_path: Path) -> None:
    samples, rankings = tmp_path / "samples.jsonl", tmp_path / "round" / "fresh.jsonl"
    labeler = Labeler(samples, rankings, seed=0)
    labeler.look()
    # Two answers to one prompt are a ranking; the same answer twice, or one to another prompt, is none.
    write(samples, sample(1, GOOD), sample(1, POOR), sample(1, POOR), sample(1, GOOD, prompt="other"))
    labeler.look()
    labeler.look()
    (found,) = read(rankings)
    assert (found["update"], found["prompt"]) == (1, PROMPT)
    assert sorted(response["rank"] for response in found["responses"]) == [1, 2]
    assert {response["text"] for response in found["responses"]} == {GOOD, POOR}

    # The run was interrupted: update 2 is new, update 1 is known, by another labeler too.
    write(samples, sample(1, GOOD), sample(1, POOR), mode="w")
    labeler.look()
    write(samples, sample(2, GOOD), sample(2, POOR))
    labeler.look()
    Labeler(samples, rankings, seed=0).look()
    assert [row["update"] for row in read(rankings)] == [1, 2]


def test_labelers_follow_gold_more_often_than_not(tmp_path: Path) -> None:
    samples, rankings = tmp_path / "samples.jsonl", tmp_path / "fresh.jsonl"
    assert gold.reward(PROMPT, GOOD, ended=True) > gold.reward(PROMPT, POOR, ended=True) + 2
    with labelling(samples, rankings, seed=3):
        for update in range(1, 101):
            write(samples, sample(update, GOOD), sample(update, POOR))
    first = [min(row["responses"], key=lambda response: response["rank"])["text"] for row in read(rankings)]
    assert len(first) == 100
    assert 90 < first.count(GOOD) <= 100
