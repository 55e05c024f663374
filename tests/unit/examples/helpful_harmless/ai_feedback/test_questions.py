"""Pairs are grouped by question, and no split separates a group."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples.helpful_harmless.ai_feedback import questions
from fairlead.errors import ConfigError


def _row(*messages: str) -> dict[str, list[dict[str, str]]]:
    roles = ("user", "assistant")
    return {
        "prompt": [{"role": roles[at % 2], "content": text} for at, text in enumerate(messages)],
        "chosen": [{"role": "assistant", "content": "no"}],
        "rejected": [{"role": "assistant", "content": "yes"}],
    }


def test_conversations_that_begin_or_end_alike_are_of_one_question(tmp_path: Path) -> None:
    long = "word " * 60
    rows = [
        _row("How do I?"),
        _row("how  do I?", "you cannot", "why not"),
        _row("Another thing", long, "say more"),
        _row("Something else", long, "say more"),
        _row("A third"),
    ]
    file = tmp_path / "hh_rlhf" / "harmless.jsonl.gz"
    file.parent.mkdir()
    with gzip.open(file, "wt", encoding="utf-8") as out:
        out.writelines(f"{json.dumps(row)}\n" for row in rows)
    found = questions.load(tmp_path)
    assert found.question_P.tolist() == [0, 0, 1, 1, 2]
    assert [pair.chosen for pair in found.pairs] == ["no"] * 5
    assert str(found.pairs[2].prompt) == "user: say more"
    some = questions.among(found, [found.pairs[4], found.pairs[2], found.pairs[4]])
    assert (some.pairs[1], some.question_P.tolist()) == (found.pairs[2], [1, 0, 1])
    with pytest.raises(ConfigError, match="--heldout-only: got \"1 of the run's 1 pairs"):
        questions.among(found, [replace(found.pairs[4], chosen="other")])
    with pytest.raises(ConfigError, match="hh_rlhf"):
        questions.load(tmp_path / "absent")


def test_names_join_items_through_others() -> None:
    assert questions.joined([["a", "x"], ["b", "y"], ["c", "x"], ["b", "z"], ["d", "z"]]).tolist() == [
        *(0, 1, 0, 1, 1)
    ]
    # The last item joins two groups that were apart.
    assert questions.joined([["a", "x"], ["b", "y"], ["a", "y"]]).tolist() == [0, 0, 0]


def test_no_question_is_in_two_parts() -> None:
    question_P = np.repeat(np.arange(40), 3)
    for seed in range(20):
        found = questions.split(question_P, learnt=50, judges=25, rng=np.random.default_rng(seed))
        parts = [set(question_P[part]) for part in (found.learnt_L, found.judges_J, found.heldout_H)]
        assert (len(found.learnt_L), len(found.judges_J)) == (50, 25)
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
        # At most the rest of two questions is left out.
        assert len(found.heldout_H) >= 120 - 50 - 25 - 2 * 2


def test_split_without_a_rest_is_refused() -> None:
    with pytest.raises(ConfigError, match="--learnt"):
        questions.split(np.arange(10), learnt=8, judges=2, rng=np.random.default_rng(0))
