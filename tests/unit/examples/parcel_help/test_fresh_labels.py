"""Fresh labels: every answer is compared once, with one of the first update."""

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


def test_each_answer_is_compared_once_with_one_of_the_first_update(tmp_path: Path) -> None:
    samples, rankings = tmp_path / "samples.jsonl", tmp_path / "round" / "fresh.jsonl"
    labeler = Labeler(samples, rankings, seed=0)
    labeler.label_new()
    write(samples, sample(1, POOR), sample(1, GOOD, prompt="other"))
    labeler.label_new()
    # No pair: the same answer as in update 1, and an answer to a prompt that update 1 lacks.
    write(samples, sample(2, GOOD), sample(2, POOR), sample(2, GOOD, prompt="third"))
    labeler.label_new()
    labeler.label_new()
    (found,) = read(rankings)
    assert (found["update"], found["prompt"]) == (2, PROMPT)
    assert {found["chosen"], found["rejected"]} == {GOOD, POOR}

    # After an interruption update 3 is new and update 2 is known, also to another labeler.
    write(samples, sample(1, POOR), mode="w")
    labeler.label_new()
    write(samples, sample(2, GOOD), sample(3, GOOD))
    labeler.label_new()
    Labeler(samples, rankings, seed=0).label_new()
    assert [row["update"] for row in read(rankings)] == [2, 3]


def test_labels_agree_with_gold_in_most_cases(tmp_path: Path) -> None:
    samples, rankings = tmp_path / "samples.jsonl", tmp_path / "fresh.jsonl"
    assert gold.reward(PROMPT, GOOD, ended=True) > gold.reward(PROMPT, POOR, ended=True) + 2
    with labelling(samples, rankings, seed=3):
        write(samples, sample(1, POOR))
        for update in range(2, 102):
            write(samples, sample(update, GOOD))
    chosen = [row["chosen"] for row in read(rankings)]
    assert len(chosen) == 100
    assert 90 < chosen.count(GOOD) <= 100
