"""Comparisons and the limit of tokens: one cut of the prompt for all answers, and pairs left out."""

from __future__ import annotations

import json
import logging

import pytest

from fairlead.data.comparisons import Preference, RankedResponses
from fairlead.errors import ConfigError
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from tests.unit.trainer.stage_world import reward_model_run
from trainer import rankings as data
from trainer.reward_model.train import train

A, B, C, LONG = "w4", "w5 w6", "w7", "w8 w9 w8"
PLACE = {"file": "p.jsonl", "line": 3}


def ids(text: str) -> tuple[int, ...]:
    return tuple(tiny_tokenizer()(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    "records",
    [
        [RankedResponses("w1 w2 w3", (A, B, C), (3.0, 2.0, 1.0))],
        [Preference("w1 w2 w3", A, B), Preference("w1 w2 w3", A, C), Preference("w1 w2 w3", B, C)],
    ],
    ids=["ranking", "pairs"],
)
@pytest.mark.parametrize(("limit", "prompt"), [(7, "<s> w1 w2 w3"), (6, "w1 w2 w3"), (4, "w3")])
def test_all_answers_follow_the_same_part_of_the_prompt(records, limit, prompt):
    encoded = data.encode(records, tiny_tokenizer(), max_tokens=limit)
    [ranking] = encoded.rankings
    assert ranking.sequences == tuple((*ids(prompt), *ids(answer), 2) for answer in (A, B, C))
    assert ranking.pairs == ((0, 1), (0, 2), (1, 2))
    assert (encoded.truncated, encoded.left_out.too_long) == (0 if limit == 7 else 3, 0)


def test_pairs_of_an_answer_without_space_for_the_prompt_are_left_out():
    records = [
        RankedResponses("w1", (A, LONG, C, "w3 w3"), (4.0, 3.0, 2.0, 1.0), **PLACE),
        Preference("w2", A, LONG, file="p.jsonl", line=4),
        Preference("w2", LONG, "w9 " + LONG, file="p.jsonl", line=5),
    ]
    encoded = data.encode(records, tiny_tokenizer(), max_tokens=4)
    [ranking] = encoded.rankings
    assert ranking.texts == (A, C, "w3 w3")
    assert ranking.pairs == ((0, 1), (0, 2), (1, 2))
    assert ranking.sequences == tuple((*ids("w1"), *ids(text), 2) for text in ranking.texts)
    found = encoded.left_out
    assert (found.pairs, found.too_long, found.alike, encoded.skipped) == (8, 5, 0, 0)
    assert found.too_long_at == ["p.jsonl:3 `responses[1].text`"] * 3
    [last] = data.encode(records[2:], tiny_tokenizer(), max_tokens=4).left_out.sentences(4)
    assert last.startswith(
        "1 of 1 pairs are left out: an answer leaves no space for its prompt within 4 tokens"
    )
    assert "(p.jsonl:5 `chosen` and `rejected`)" in last


def test_pairs_that_the_tokenizer_reads_alike_are_left_out():
    records = [
        RankedResponses("w1", ("unknown", "other", A), (3.0, 2.0, 1.0), **PLACE),
        Preference("w2", "w5  w6", B, file="p.jsonl", line=9),
    ]
    encoded = data.encode(records, tiny_tokenizer(), max_tokens=9)
    assert [ranking.text_pairs for ranking in encoded.rankings] == [[("unknown", A), ("other", A)]]
    assert (encoded.left_out.alike, encoded.left_out.too_long, encoded.ties) == (2, 0, 0)
    assert encoded.left_out.alike_at == [
        "p.jsonl:3 `responses[0].text` and `responses[1].text`",
        "p.jsonl:9 `chosen` and `rejected`",
    ]


@pytest.mark.parametrize("long", [25, 31], ids=["few", "most"])
def test_stage_refuses_data_of_which_most_cannot_be_learnt(tmp_path, caplog, long):
    config = reward_model_run(tmp_path, comparisons=0, epochs=1, max_sequence_tokens=32)
    rest = " ".join(["w9"] * 30)
    rows = [
        {"prompt": f"w{n} w3", "chosen": f"w1 {rest if n < long else ''}", "rejected": "w2"}
        for n in range(50)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_causal_lm(config.folder.sft_model)
    first = f"{tmp_path}/p.jsonl:1 `chosen`"
    message = f"{long} of 50 pairs are left out: an answer leaves no space for its prompt within 32 tokens"
    if long > 25:
        with pytest.raises(
            ConfigError, match=r"^data\.preferences: got '31 of 50 pairs that cannot be learnt'"
        ) as refused:
            train(config)
        assert message in str(refused.value)
        assert first in str(refused.value)
        return
    with caplog.at_level(logging.WARNING):
        result = train(config)
    assert (result["too_long"], result["alike"]) == (25, 0)
    assert result["comparisons"] + result["heldout_comparisons"] == 25
    assert message in caplog.text


def test_margin_that_no_comparison_has_is_refused(tmp_path):
    config = reward_model_run(tmp_path, comparisons=20, epochs=1, margin=0.5)
    tiny_causal_lm(config.folder.sft_model)
    with pytest.raises(ConfigError, match=r"^reward_model\.margin: got '0\.5, but no comparison says"):
        train(config)
