"""Line formats: rankings by rank or score, pairs, conversations, plain text; and their errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from fairlead.config import RunConfig, load
from fairlead.data.comparisons import Preference, RankedResponses
from fairlead.data.demonstrations import Conversation, Demonstration, Message, PlainText
from fairlead.data.records import is_heldout, load_demonstrations, load_preferences
from fairlead.errors import ConfigError, DataError

REAL = Path(__file__).parents[5] / "shared" / "data" / "alpaca_eval" / "rankings.jsonl.gz"


def config(folder: Path, **data: object) -> RunConfig:
    return load(overrides={"base": str(folder), **{f"data.{key}": value for key, value in data.items()}})


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one_of(split):
    (found,) = (*split.train, *split.heldout)
    return found


def prompt_of_training(run: RunConfig) -> str:
    return next(text for text in map(str, range(99)) if not is_heldout(run, text))


def test_ranks_and_scores_give_the_same_order(tmp_path: Path) -> None:
    run = config(tmp_path, preferences="p", tie_margin=0.1)
    asked = prompt_of_training(run)
    texts = ("a", "b", "c", "d")
    ranks, scores = (1, 2, 2, 4), (0.9, 0.55, 0.5, 0.47)
    for key, values in (("rank", ranks), ("score", scores)):
        responses = [{"text": t, key: v, "source": "x"} for t, v in zip(texts, values, strict=True)]
        write(tmp_path / "p", {"prompt": asked, "responses": responses})
        found = one_of(load_preferences(run))
        assert isinstance(found, RankedResponses)
        assert (found.prompt, found.texts) == (asked, texts)
        lower = {(1, 3), (2, 3)} if key == "rank" else set()
        assert set(found.pairs) == {(0, 1), (0, 2), (0, 3)} | lower


def test_tie_margin_is_not_transitive_and_equal_scores_always_tie() -> None:
    chain = RankedResponses("", ("a", "b", "c"), (0.00, 0.25, 0.50), tie_margin=0.5)
    assert chain.pairs == ((2, 0),)
    equal = RankedResponses("", ("a", "b", "c"), (1.0, 1.0, 0.5))
    assert equal.pairs == ((0, 2), (1, 2))


def test_files_are_concatenated_and_formats_mix(tmp_path: Path) -> None:
    run = config(tmp_path, preferences=["one", "two"])
    asked = prompt_of_training(run)
    write(tmp_path / "one", {"prompt": asked, "chosen": "a", "rejected": "b"})
    write(tmp_path / "two", {"prompt": asked, "responses": [{"text": t, "rank": 1} for t in "ab"]})
    pair, tied = load_preferences(run).train
    assert pair == Preference(asked, "a", "b")
    assert isinstance(tied, RankedResponses)
    assert tied.pairs == ()
    with pytest.raises(ConfigError, match=r"^data.preferences: got 'no file'"):
        load_preferences(config(tmp_path, preferences=[]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"prompt": "a", "responses": [{"text": "x", "rank": 1}]}',
            "got '1 responses', allowed: at least 2",
        ),
        ('{"prompt": "a", "responses": 3}', "got '`responses` of type number', allowed: `responses` of type"),
        (
            '{"prompt": "a", "responses": [1, 2]}',
            "got '`responses[0]` of type number', allowed: a JSON object",
        ),
        (
            '{"prompt": "a", "responses": [{"text": "x", "rank": 1}, {"text": "y", "score": 1}]}',
            "got 'responses without a common measure', allowed: `rank` in each, or `score` in each",
        ),
        (
            '{"prompt": "a", "responses": [{"text": "x", "rank": 1}, {"text": "y", "rank": "2"}]}',
            "got \"`responses[1].rank` = '2'\", allowed: a finite number in `responses[1].rank`",
        ),
        (
            '{"prompt": "a", "responses": [{"text": "x", "score": NaN}, {"text": "y", "score": 1}]}',
            "got '`responses[0].score` = nan', allowed",
        ),
        (
            '{"prompt": "a", "responses": [{"rank": 1}, {"text": "y", "rank": 2}]}',
            "got 'the keys rank in `responses[0]`', allowed: a key `text`",
        ),
    ],
)
def test_invalid_ranking_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "p").write_text(line)
    with pytest.raises(DataError) as caught:
        load_preferences(config(tmp_path, preferences="p"))
    assert str(caught.value).startswith(f"{tmp_path / 'p'}:1: {message}")


def test_conversation_is_split_by_its_first_question(tmp_path: Path) -> None:
    run = config(tmp_path, demonstrations="d", heldout_fraction=0.3)
    prompts = [f"question {number}" for number in range(60)]
    rows: list[object] = []
    for prompt in prompts:
        said = [("system", "be brief"), ("user", prompt), ("assistant", "yes")]
        rows.append({"prompt": prompt, "completion": "yes"})
        rows.append({"messages": [{"role": role, "content": content} for role, content in said]})
    split = load_demonstrations(
        config(tmp_path, demonstrations=str(write(tmp_path / "d", *rows)), heldout_fraction=0.3)
    )
    for side, heldout in ((split.train, False), (split.heldout, True)):
        kinds = [{r.prompt for r in side if isinstance(r, kind)} for kind in (Demonstration, Conversation)]
        assert kinds[0] == kinds[1] == {prompt for prompt in prompts if is_heldout(run, prompt) is heldout}
    found = next(record for record in split.train if isinstance(record, Conversation))
    assert found.messages[0] == Message("system", "be brief")
    write(tmp_path / "d", {"text": "only text", "label": 1}, {"text": "more"})
    both = load_demonstrations(run)
    assert {*both.train, *both.heldout} == {PlainText("only text"), PlainText("more")}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "got '`messages` without an assistant message', allowed: at least one to learn from"),
        ([{"role": "user", "content": "a"}], "got '`messages` without an assistant message'"),
        (
            [{"role": "tool", "content": "a"}],
            "got \"`messages[0].role` = 'tool'\", allowed: one of system, user",
        ),
        ([{"role": "assistant", "content": " "}], "got 'blank `messages[0].content`'"),
        ([{"role": "user"}], "got 'the keys role in `messages[0]`', allowed: a key `content`"),
        (
            [{"role": "user", "content": ["a"]}],
            "got '`messages[0].content` of type array', allowed: `messages[0].content` of type string",
        ),
    ],
)
def test_invalid_conversation_is_named(tmp_path: Path, messages: object, message: str) -> None:
    write(tmp_path / "d", {"messages": messages})
    with pytest.raises(DataError) as caught:
        load_demonstrations(config(tmp_path, demonstrations="d"))
    assert str(caught.value).startswith(f"{tmp_path / 'd'}:1: {message}")


@pytest.mark.skipif(not REAL.exists(), reason="the data set of rankings is not here")
def test_real_rankings_are_read_and_split_by_prompt() -> None:
    run = config(REAL.parent, preferences=REAL.name, tie_margin=0.05)
    split = load_preferences(run)
    with gzip.open(REAL, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    records = [record for record in (*split.train, *split.heldout) if isinstance(record, RankedResponses)]
    assert len(records) == len(rows)
    assert not {r.prompt for r in split.train} & {r.prompt for r in split.heldout}
    expected = 0
    for row in rows:
        scores = [response["score"] for response in row["responses"]]
        expected += sum(a - b >= 0.05 for a in scores for b in scores)
    assert sum(len(record.pairs) for record in records) == expected > 2_000
