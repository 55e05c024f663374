"""The comparison of reward models, the measures before and after, and their tables, in closed cases."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest

from examples.helpful_harmless import accuracy, instructions, make, measures, tables
from examples.helpful_harmless.reading import Readings

ROOT = Path(__file__).parents[4]
RANKINGS = ROOT.parent / "shared" / "data" / "alpaca_eval" / "rankings.jsonl.gz"


def test_comparison_counts_ties_half_and_pairs_the_gain() -> None:
    found = accuracy.compare(
        {"bag_of_words": [1.0, -1.0, 0.0, 2.0], "reward_model": [1.0, 1.0, 1.0, -2.0]}, seed=0
    )
    assert found["bag_of_words"]["accuracy"] == 2.5 / 4
    assert found["bag_of_words"]["gain"] == 0.0
    assert found["bag_of_words"]["gain_interval"] == (0.0, 0.0)
    assert found["reward_model"]["accuracy"] == 3 / 4
    assert found["reward_model"]["gain"] == pytest.approx((0 + 1 + 0.5 - 1) / 4)


def test_baselines_of_texts() -> None:
    train = [("calm words", "angry words"), ("calm", "angry")] * 5
    margins = accuracy.margins_of_texts(train, [("so calm", "so very angry"), ("angry", "calm")])
    assert margins["longer_wins"] == [-1.0, 0.0]
    assert margins["shorter_wins"] == [1.0, 0.0]
    assert margins["bag_of_words"][0] > 0 > margins["bag_of_words"][1]


def test_likelihood_is_a_sum_and_a_mean() -> None:
    better = Readings(np.array([-6.0]), np.array([3.0]), np.zeros((1, 2)))
    worse = Readings(np.array([-5.0]), np.array([1.0]), np.zeros((1, 2)))
    margins = accuracy.margins_of_likelihood(better, worse)
    assert margins == {"log_likelihood": [-1.0], "mean_log_likelihood": [3.0]}


def test_changes_are_paired_by_text() -> None:
    before = {"words": [10.0, 20.0, 30.0], "refuses": []}
    after = {"words": [12.0, 22.0, 32.0], "refuses": []}
    found = measures.changes(before, after, seed=0)
    assert found == {"words": {"n": 3, "before": 20.0, "after": 22.0, "change": 2.0, "interval": (2.0, 2.0)}}
    with pytest.raises(ValueError, match="zip"):
        measures.changes({"words": [1.0]}, {"words": [1.0, 2.0]}, seed=0)


def test_interval_of_no_change_contains_zero() -> None:
    rng = random.Random(3)
    noise = [[rng.random() for _ in range(100)] for _ in range(2)]
    row = measures.changes({"judge": noise[0]}, {"judge": noise[1]}, seed=0)["judge"]
    assert row["interval"][0] < 0 < row["interval"][1]


def test_interval_of_two_shares_has_a_width_without_any_change() -> None:
    same = [1.0] * 10 + [0.0] * 30
    row = measures.changes({"refuses": same}, {"refuses": same}, seed=0)["refuses"]
    assert row["interval"][0] < row["change"] == 0.0 < row["interval"][1]
    later = [1.0] * 30 + [0.0] * 10
    row = measures.changes({"refuses": same}, {"refuses": later}, seed=0)["refuses"]
    assert 0.3 < row["interval"][0] < row["change"] == 0.5 < row["interval"][1] < 0.7


def test_win_rate_counts_ties_half() -> None:
    assert measures.win_rate([0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 0.0, 2.0], seed=0)["share"] == 2.5 / 4


def test_tables_have_a_row_of_each_measure_under_its_group() -> None:
    rows = {name: [0.25, 0.75] for name in measures.MEASURES}
    later = {name: [0.5, 1.0] for name in measures.MEASURES}
    text = tables.markdown(
        {
            "reward_models": accuracy.compare(
                {"bag_of_words": [1.0], "reward_model": [-1.0], "judge": [0.0]}, seed=0
            ),
            "changes": measures.changes(rows, later, seed=0),
            "wins": measures.win_rate([0.0, 0.0], [1.0, 1.0], seed=0),
            "pairs": {"known": 10, "unseen": 4},
            "distinct_2": [0.7, 0.6],
            "ppo": {"kl": 2.5},
        }
    )
    assert "| reward model | 0.0% | 0.0% to 0.0% | -100.0% (-100.0% to -100.0%) |" in text
    assert "| bag of words | 100.0% | 100.0% to 100.0% |  |" in text
    assert "| answers that refuse | 2 | 50.0% | 75.0% | +25.0% | +25.0% to +25.0% |" in text
    lines = text.splitlines()
    for group in (measures.HARM, measures.HELP, measures.KEPT, measures.SHAPE):
        assert lines.count(f"| **{group}** | | | | | |") == 1
    assert all(f"| {measure.title} |" in text for measure in measures.MEASURES.values())
    assert "better for 100.0% of 2 prompts" in text
    assert "it is right on 50.0% of pairs of people that it has not seen" in text


def test_shared_words_is_the_f1_of_words_that_are_not_common() -> None:
    # Of "paris capital france" and "capital france lyon city" two are shared: precision 2/3, recall 2/4.
    found = instructions.shared_words(
        "Paris is the capital of France.", "the capital of France: Lyon, a city"
    )
    assert found == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert instructions.shared_words("the of and", "the of and") == 0.0
    assert instructions.shared_words("", "words") == 0.0


def test_instructions_have_the_answer_that_was_liked_best(tmp_path: Path) -> None:
    rows = [
        {"prompt": "long " * 31, "responses": [{"text": "x", "score": 1.0}]},
        {"prompt": "short", "responses": [{"text": "bad", "score": 0.1}, {"text": "w " * 50, "score": 0.9}]},
        {"prompt": "another", "responses": [{"text": "y", "score": 0.0}]},
    ]
    file = tmp_path / "rankings.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    first, second = instructions.load(file)
    assert first == instructions.Instruction("short", " ".join(["w"] * instructions.MAX_ANSWER_WORDS))
    assert second == instructions.Instruction("another", "y")


def test_demonstrations_are_whole_sentences_of_other_instructions(tmp_path: Path) -> None:
    long = "w " * (instructions.MAX_DEMONSTRATED_WORDS - 2)
    answers = ["asked"] * instructions.NUM_EVALUATED + [
        "One two. Three\n\nfour ",
        f"A b? {long}c d. e",
        f"{long}a b c",
    ]
    rows = [
        {"prompt": f"number {number}", "responses": [{"text": answer, "score": 1.0}]}
        for number, answer in enumerate(answers)
    ]
    file = tmp_path / "rankings.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    found = instructions.demonstrations(file)
    assert [one.answer for one in found] == ["One two. Three\n\nfour", "A b?"], (
        "no sentence of the last is short"
    )
    assert not {one.prompt for one in found} & {one.prompt for one in instructions.load(file)}
    assert make.make_demonstrations(file, tmp_path / "made") == 2
    [first, _] = map(json.loads, (tmp_path / "made" / "demonstrations.jsonl").read_text().splitlines())
    assert [message["role"] for message in first["messages"]] == ["user", "assistant"]


@pytest.mark.skipif(not RANKINGS.is_file(), reason="../shared/data/alpaca_eval is absent")
def test_there_are_enough_real_instructions() -> None:
    found = [*instructions.load(RANKINGS), *instructions.demonstrations(RANKINGS)]
    assert len({one.prompt for one in found}) == len(found) > instructions.NUM_EVALUATED + 400
    assert all(instructions.shared_words(one.answer, one.answer) in (0.0, 1.0) for one in found)
