"""Alpaca and ShareGPT: each line is read as the same line in this project's keys, with errors in its own."""

from __future__ import annotations

import pytest

from fairlead.data import columns
from fairlead.data.chat import prompt
from fairlead.data.comparisons import comparisons
from fairlead.data.demonstrations import example
from fairlead.data.lines import Line
from fairlead.data.scorable import scorable
from fairlead.errors import DataError

U, A, S = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))
SAID = [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]


def line(values: dict) -> Line:
    return Line("file", 1, values)


def compared(one: Line):
    return comparisons(one, tie_margin=0.0)


@pytest.mark.parametrize(
    ("parse", "theirs", "ours"),
    [
        (example, {"instruction": "u", "input": "", "output": "a", "text": "### u"}, {"messages": [U, A]}),
        (example, {"instruction": "", "input": "u", "output": "a"}, {"messages": [U, A]}),
        (
            example,
            {"instruction": "u", "output": "a", "system": "s", "history": [["u", "a"]]},
            {"messages": [S, U, A, U, A]},
        ),
        (example, {"conversations": SAID, "system": "s", "id": 7}, {"messages": [S, U, A]}),
        (example, {"conversations": [U, A]}, {"messages": [U, A]}),
        (
            example,
            {"conversations": [*SAID, SAID[0], {**SAID[1], "weight": 0}]},
            {"messages": [U, A, U, {**A, "weight": 0}]},
        ),
        (prompt, {"instruction": "u", "output": "a"}, {"prompt": [U]}),
        (prompt, {"instruction": "u", "output": None}, {"prompt": [U]}),
        (prompt, {"conversations": SAID}, {"prompt": [U]}),
        (compared, {"instruction": "u", "chosen": "a", "rejected": "b"}, {"prompt": [U]}),
        (
            compared,
            {"conversations": SAID[:1], "chosen": SAID[1], "rejected": {"from": "gpt", "value": "b"}},
            {"prompt": [U]},
        ),
        (lambda one: scorable(one).items, {"instruction": "u", "output": "a"}, {"messages": [U, A]}),
        (lambda one: scorable(one).items, {"conversations": SAID}, {"messages": [U, A]}),
    ],
)
def test_line_is_read_as_the_same_line_in_our_keys(parse, theirs, ours):
    if parse is compared:
        ours |= {"chosen": "a", "rejected": "b"}
    assert parse(line(theirs)) == parse(line(ours))


def test_scores_are_added_to_the_line_as_it_is_in_the_file():
    assert scorable(line({"conversations": SAID, "id": 1})).line == line({"conversations": SAID, "id": 1})


@pytest.mark.parametrize(
    ("parse", "values", "error"),
    [
        (
            example,
            {"instruction": " ", "output": "a"},
            "got 'blank `instruction`', allowed: `instr",
        ),
        (example, {"instruction": "u", "output": " "}, "got 'blank `output`', allowed: an assis"),
        (example, {"instruction": "u"}, "got 'the keys instruction', allowed: a key `output`"),
        (example, {"instruction": 3, "output": "a"}, "got '`instruction` of type number'"),
        (example, {"instruction": "u", "history": [["u"]], "output": "a"}, r"got .`history\[0\]` = \['u'\]"),
        (compared, {"instruction": "u", "chosen": "a", "rejected": "a"}, "got 'identical `chosen` and"),
        (
            example,
            {"system": "s", "conversations": [SAID[0], {"from": "gpt", "value": ""}]},
            r"got 'blank `conversations\[1\].value`'",
        ),
        (
            example,
            {"conversations": [{"from": "function_call", "value": "f()"}]},
            r"got .`conversations\[0\].from` = 'function_call'., allowed: one of assistant, bot",
        ),
        (example, {"conversations": SAID[:1]}, "got '`conversations` without an assistant message'"),
        (
            example,
            {"conversations": [{"from": "gpt"}]},
            r"keys from in `conversations\[0\]`', .*`value`",
        ),
        (
            example,
            {"instruction": "u", "history": [["u", ""]], "output": "a"},
            r"got 'blank `history\[0\]\[1\]`'",
        ),
        (
            example,
            {"conversations": [SAID[0], {"value": "a"}]},
            r"keys value in `conversations\[1\]`', .*`from`",
        ),
        (
            example,
            {"conversations": [SAID[0], {"from": "gpt", "value": "a", "content": "b"}]},
            r"got '`conversations\[1\].from` and `conversations\[1\].content`'",
        ),
        (example, {"conversations": SAID, "tools": "[f]"}, "got '`tools`, which is not read'"),
        (
            compared,
            {"conversations": SAID, "chosen": "a", "rejected": "b"},
            "`conversations` that ends with",
        ),
    ],
)
def test_errors_name_the_keys_of_the_line(parse, values, error):
    with pytest.raises(DataError, match=error):
        parse(line(values))


def test_keys_are_reported_with_their_meaning_or_as_not_read():
    alpaca = line({"instruction": "u", "input": "i", "output": "a", "text": "t", "id": 1, "note": None})
    assert columns.read_as("demonstrations", alpaca) == {
        "instruction": "user message",
        "input": "user message, after `instruction`",
        "output": "assistant message",
    }
    assert list(columns.not_read("demonstrations", alpaca)) == ["text", "id"]
    named = line({"messages": [{**U, "name": "x"}, {**A, "weight": 0, "name": None}], "prompt": "p"})
    assert columns.read_as("demonstrations", named) == {"messages": "messages"}
    assert list(columns.not_read("demonstrations", named)) == ["messages[].name", "prompt"]
    assert list(columns.not_read("prompts", named)) == ["messages"]
    whole = line({"prompt": "u", "chosen": [U, A], "rejected": [U, {**A, "weight": 1}]})
    assert list(columns.not_read("preferences", whole)) == ["prompt", "rejected[].weight"]
