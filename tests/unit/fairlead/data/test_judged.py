"""Judgments in lines of rankings: ids of tasks and answers, orders shown, revisions, and refused lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.config import load
from fairlead.data.check import check
from fairlead.data.judged import judged, newest
from fairlead.data.lengths import Words
from fairlead.data.lines import Line
from fairlead.errors import DataError
from fairlead.judgments import agreement


def line(*responses: dict[str, object], number: int = 1, **keys: object) -> Line:
    values = {"prompt": "Is it raining?", "labeler": "anna", "responses": list(responses), **keys}
    return Line("r.jsonl", number, values)


def answer(text: str, rank: float, **keys: object) -> dict[str, object]:
    return {"text": text, "rank": rank, **keys}


def test_judgments_of_one_prompt_and_answers_share_a_task_in_any_order():
    one = judged(line(answer("Yes.", 1), answer("No idea.", 2))).judgment
    other = judged(line(answer("No idea.", 1), answer("Yes.", 1), labeler=7)).judgment
    assert (one.task, one.ranks.keys()) == (other.task, other.ranks.keys())
    assert (one.labeler, other.labeler, one.shown) == ("anna", "7", ())
    assert sorted(one.lengths.values()) == [4, 8]
    assert agreement([one, other], seed=0).tied == 1
    for different in (
        line(answer("Yes.", 1), answer("No.", 2)),
        line(answer("Yes.", 1), answer("No.", 2), prompt=""),
    ):
        assert judged(different).judgment.task != one.task


def test_keys_name_task_answers_and_positions():
    three = [answer("Yes.", 2, answer="a"), answer("No.", 1, answer="b"), answer("Well.", 2, answer=3)]
    found = judged(line(*three, task=5, shown=["b", 3, "a"])).judgment
    assert (found.task, found.ranks, found.shown) == ("5", {"a": 2, "b": 1, "3": 2}, ("b", "3", "a"))
    assert found.lengths == {"a": 4, "b": 3, "3": 5}
    assert judged(line(*three, shown=[])).judgment.shown == ()
    scores = judged(line({"text": "Yes.", "score": 0.4}, {"text": "No.", "score": 0.9}, task="5")).judgment
    assert sorted(scores.ranks.values()) == [-0.9, -0.4]
    # An answer that occurs twice has the mean of its ranks.
    twice = judged(line(answer("Yes.", 1), answer("Yes.", 3), answer("No.", 2))).judgment
    assert sorted(twice.ranks.values()) == [2, 2]


def test_pairs_are_tasks_of_their_own():
    pairs = [
        {"prompt": "p", "chosen": a, "rejected": b, "labeler": "anna", "task": "1"}
        for a, b in ("xy", "yz", "zx")
    ]
    found = newest(judged(Line("r.jsonl", 1, values)) for values in pairs)
    assert len({one.judgment.task for one in found}) == 3
    assert all(sorted(one.judgment.ranks.values()) == [1, 2] for one in found)


def test_later_lines_replace_earlier_ones():
    lines = [
        line(answer("Yes.", 1), answer("No.", 2), number=1),
        line(answer("Yes.", 1), answer("No.", 2), number=2, labeler="bo"),
        line(answer("Yes.", 2), answer("No.", 1), number=3),
    ]
    found = newest(map(judged, lines))
    assert [one.line.number for one in found] == [2, 3]
    assert agreement([one.judgment for one in found], seed=0).rate == 0


def test_labelers_who_agree_are_no_duplicates_of_one_another(tmp_path: Path):
    responses = [answer("Yes.", 1), answer("No.", 2)]
    lines: list[dict[str, object]] = [
        {"labeler": "anna", "judgment": "1"},
        {"labeler": "bo", "judgment": "2"},
        {"labeler": "bo", "judgment": "2"},  # a duplicate
        {"labeler": "cleo"},
        {"labeler": "cleo"},  # a duplicate
        {"labeler": "cleo", "judgment": "3"},
        {},
        {},  # a duplicate
    ]
    file = tmp_path / "r.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": "p", "responses": responses} | keys) + "\n" for keys in lines)
    )
    config = load(overrides={"data.preferences": str(file)})
    (report,) = check(config, rulers={"preferences": Words()}, limits={}, max_errors=1)
    # Of each labeler, and of lines without one, only the first has a new prompt.
    assert (report.lines, report.duplicates, report.repeated_prompts) == (8, 3, 4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(answer("a", 1), answer("b", 2), labeler=None), "got .*labeler.*, allowed: a key `labeler`"),
        (line(answer("a", 1), answer("b", 2), labeler=" "), "blank `labeler`"),
        (line(answer("a", 1), answer("b", 2), labeler=1.5), "`labeler` of type number"),
        (line(answer("a", 1), answer("a", 2)), "answers that are all the same text"),
        (line(answer("a", 1, answer=1), answer("b", 2)), "allowed: a key `answer`"),
        (line(answer("a", 1, answer=1), answer("b", 2, answer="1")), "`answer` = '1' twice"),
        (
            line(answer("a", 1, answer=1), answer("b", 2, answer=2), shown=[1, 3]),
            r"`shown` = \[1, 3\].*answers 1, 2",
        ),
        (line(answer("a", 1), answer("b", 2), shown="a"), "`shown` = 'a'"),
        (Line("r.jsonl", 1, {"prompt": "p", "labeler": "anna"}), "allowed: a key `chosen`"),
    ],
)
def test_invalid_lines_are_refused(bad: Line, message: str):
    with pytest.raises(DataError, match=message):
        judged(bad)
