"""The parts of hh_rlhf: disjoint by question, shortened from the left; also on the real data, if present."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from examples.helpful_harmless import make
from fairlead.config import load
from fairlead.data.records import load_preferences, load_prompts

ROOT = Path(__file__).parents[4]
HARMLESS = ROOT.parent / "shared" / "data" / "hh_rlhf" / "harmless.jsonl.gz"
needs_pairs = pytest.mark.skipif(not HARMLESS.is_file(), reason="../shared/data/hh_rlhf is absent")


def _turns(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]


def _pair(*contents: str) -> make.Pair:
    return {"prompt": _turns(*contents), "chosen": _turns("yes"), "rejected": _turns("no")}


def test_short_conversation_is_kept_whole() -> None:
    turns = _turns("one two", "three", "four")
    assert make.shortened(turns) == turns


def test_long_conversation_loses_its_first_turns_and_begins_with_the_user() -> None:
    # The last three messages have 41 words, the fourth from the end would make 61.
    turns = _turns("a " * 30, "b " * 10, "c " * 20, "d " * 20, "e")
    assert make.shortened(turns) == turns[2:]
    # The last two have 31 words; an answer never comes first.
    turns = _turns("a " * 60, "b " * 30, "c")
    assert make.shortened(turns) == turns[2:]


def test_long_last_question_keeps_its_last_words() -> None:
    words = [str(number) for number in range(make.MAX_PROMPT_WORDS + 5)]
    [message] = make.shortened(_turns("before", "between", " ".join(words)))
    assert message == {"role": "user", "content": " ".join(words[5:])}


def test_first_question_decides_the_part() -> None:
    counts = Counter(make.part_of(f"question {number} ?") for number in range(4_000))
    assert {part: round(count / 4_000, 1) for part, count in counts.items()} == make.SHARES
    assert make.part_of("What  is\nthis?") == make.part_of("what is this?")
    found = make.parts([_pair("same", "x", str(number)) for number in range(9)])
    assert sorted(map(len, found.values())) == [0, 0, 9]


def test_shortened_prompt_is_in_one_part_only() -> None:
    pairs = [_pair(f"{number} " * 70, "a " * 70, "the same end") for number in range(40)]
    found = make.parts(pairs)
    assert len(found["train"]) > 10, "repeated prompts may stay within a part"
    assert not found["judge"]
    assert not found["heldout"]


def test_files_have_every_pair_once(tmp_path: Path) -> None:
    pairs = [_pair(f"question {number} ?") for number in range(50)]
    file = tmp_path / "pairs.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(pair) + "\n" for pair in pairs).encode()))
    counts = make.make(file, tmp_path / "parts")
    lines = [
        line for part in counts for line in (tmp_path / "parts" / f"{part}.jsonl").read_text().splitlines()
    ]
    assert sorted(lines) == sorted(json.dumps(pair) for pair in pairs)
    assert sum(counts.values()) == 50


@needs_pairs
def test_run_reads_the_parts_of_the_real_pairs(tmp_path: Path) -> None:
    counts = make.make(HARMLESS, tmp_path / "build" / "helpful_harmless")
    assert counts == {"train": 957, "judge": 329, "heldout": 316}
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "run.toml"
    file.write_bytes((ROOT / "configs" / "helpful_harmless.toml").read_bytes())
    config = load(file)
    pairs, prompts = load_preferences(config), load_prompts(config)
    assert (len(pairs.train), len(pairs.heldout)) == (957, 329 + 316)
    sides = [{str(pair.prompt) for pair in side} for side in (pairs.train, pairs.heldout)]
    assert not sides[0] & sides[1]
    assert {str(prompt) for prompt in prompts.train} <= sides[0]
    assert {str(prompt) for prompt in prompts.heldout} <= sides[1]
