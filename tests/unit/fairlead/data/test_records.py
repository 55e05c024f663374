"""Loading and splitting of demonstrations, preferences and prompts: exact errors, a stable split."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fairlead.config import RunConfig, load
from fairlead.data.records import (
    Demonstration,
    Preference,
    is_heldout,
    load_demonstrations,
    load_preferences,
    load_prompts,
)
from fairlead.errors import ConfigError, DataError, InvalidInput


def _config(folder: Path, **data: object) -> RunConfig:
    overrides: dict[str, object] = {f"data.{name}": value for name, value in data.items()}
    return load(None, overrides={"base": str(folder), **overrides})


def _lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_reads_demonstrations_plain_and_gzipped(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "completion": f"answer {i} ü", "more": 1} for i in range(200)]
    _lines(tmp_path / "plain.jsonl", *rows)
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n\n".join(json.dumps(row) for row in rows))

    plain = load_demonstrations(_config(tmp_path, demonstrations="plain.jsonl"))
    packed = load_demonstrations(_config(tmp_path, demonstrations="packed.jsonl.gz"))

    assert plain == packed
    assert set(plain.train) | set(plain.heldout) == {
        Demonstration(prompt=f"question {i}", completion=f"answer {i} ü") for i in range(200)
    }


def test_split_is_by_prompt_and_equal_for_every_kind(tmp_path: Path) -> None:
    prompts = [f"question {i}" for i in range(500)]
    _lines(tmp_path / "d", *({"prompt": p, "completion": f"answer {k}"} for k in range(3) for p in prompts))
    _lines(tmp_path / "p", *({"prompt": p} for p in reversed(prompts)))
    _lines(tmp_path / "c", *({"prompt": p, "chosen": "yes", "rejected": "no"} for p in prompts))
    config = _config(tmp_path, demonstrations="d", prompts="p", preferences="c", heldout_fraction=0.2)

    demonstrations, asked, compared = (
        load_demonstrations(config),
        load_prompts(config),
        load_preferences(config),
    )

    heldout = set(asked.heldout)
    assert heldout == {p for p in prompts if is_heldout(config, p)}
    assert heldout == {d.prompt for d in demonstrations.heldout} == {c.prompt for c in compared.heldout}
    assert len(demonstrations.heldout) == 3 * len(heldout)
    assert not heldout & {d.prompt for d in demonstrations.train}
    # Binomial(500, 0.2): 5 standard deviations on either side.
    assert 55 <= len(heldout) <= 145
    assert asked.train == tuple(p for p in reversed(prompts) if p not in heldout)


@pytest.mark.parametrize("loader", [load_demonstrations, load_preferences, load_prompts])
@pytest.mark.parametrize("derived", [False, True], ids=["own", "sentences"])
def test_heldout_source_replaces_the_split_of_its_kind(tmp_path, caplog, loader, derived):
    kind = loader.__name__.removeprefix("load_")
    rows = [
        {"prompt": f"question {i}", "completion": "a", "chosen": "yes", "rejected": "no"} for i in range(100)
    ]
    _lines(tmp_path / "train", *rows[:80])
    _lines(tmp_path / "s", *({"text": f"question {i} and {i} more", "label": i % 2} for i in range(80)))
    _lines(tmp_path / "test", *rows[80:])
    _lines(tmp_path / "mixed", *rows[90:], {**rows[0], "prompt": "Question  0"}, {"odd": 1})
    known = {"sentences": "s", "prompt_words": 2} if derived else {kind: "train"}
    split = loader(_config(tmp_path, **known))
    own = loader(_config(tmp_path, **known, **{f"heldout_{kind}": "test"}))

    asked = [record if isinstance(record, str) else record.prompt for record in own.heldout]
    assert asked == [row["prompt"] for row in rows[80:]]
    assert split.heldout
    assert len(own.train) > len(split.train)
    if not derived:
        assert len(own.train) == 80
        assert not caplog.records
        with pytest.raises(DataError, match=r"mixed:12: got"):
            loader(_config(tmp_path, **known, **{f"heldout_{kind}": "mixed"}))
        loader(_config(tmp_path, **known, bad_lines="skip", **{f"heldout_{kind}": "mixed"}))
        assert f"data.heldout_{kind}: 1 of 11 records have a prompt of data.{kind}" in caplog.text
    with pytest.raises(ConfigError, match=f"data.heldout_{kind}: got .*none.*a file that exists"):
        loader(_config(tmp_path, **known, **{f"heldout_{kind}": "none"}))


def test_split_depends_on_the_seed_and_not_on_the_process(tmp_path: Path) -> None:
    prompts = [f"question {i}" for i in range(40)]
    sides = {
        seed: [p for p in prompts if is_heldout(load(None, overrides={"seed": seed}), p)] for seed in (0, 1)
    }
    # Checks that the split is equal in every process: a salted hash would differ.
    assert sides[0] == ["question 5", "question 6", "question 30"]
    assert sides[1] != sides[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"prompt": "a", "completion": "b"}\n[1]\n',
            ":2: got 'JSON of type array', allowed: a JSON object",
        ),
        (
            b'{"prompt": "a"}\n',
            ":1: got 'the keys prompt', allowed: a key `completion`",
        ),
        (
            b'\n{"prompt": 3, "completion": "b"}',
            ":2: got '`prompt` of type number', allowed: `prompt` of type string",
        ),
        (
            b'{"prompt": "a", "completion": null}',
            ":1: got '`completion` of type null', allowed: `completion` of type string",
        ),
        (
            b'{"prompt": "a", "completion": " "}',
            ":1: got 'blank `completion`', allowed: `completion` with text",
        ),
        (
            b'{"prompt": "a", ',
            ':1: got \'{"prompt": "a",\', allowed: a JSON object (Expecting property name enclosed in double '
            "quotes: line 1 column 17 (char 16))",
        ),
        (b'{"prompt": "\xff", "completion": "b"}', ":1: got 'byte 0xff at position 12', allowed: UTF-8"),
        (b"", ":1: got 'an empty file', allowed: one JSON object per line, or rows of Parquet"),
        (b"\n\n", ":1: got 'an empty file', allowed: one JSON object per line, or rows of Parquet"),
    ],
)
def test_invalid_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_demonstrations(_config(tmp_path, demonstrations="bad.jsonl"))
    assert str(caught.value) == f"{path}{message}"


def test_truncated_gzip_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.gz"
    rows = "".join(
        json.dumps({"prompt": f"question {i * 7919 % 1000}", "completion": "x"}) + "\n" for i in range(3000)
    )
    whole = gzip.compress(rows.encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="got 'a damaged gzip: .*', allowed: a whole file") as caught:
        load_demonstrations(_config(tmp_path, demonstrations=str(path)))
    assert caught.value.file == str(path)
    assert 1 <= caught.value.line <= 3001


def test_identical_answers_are_rejected(tmp_path: Path) -> None:
    path = _lines(
        tmp_path / "c",
        {"prompt": "", "chosen": "", "rejected": "rude"},
        {"prompt": "", "chosen": "a", "rejected": "a"},
    )
    with pytest.raises(DataError) as caught:
        load_preferences(_config(tmp_path, preferences="c"))
    assert (
        str(caught.value)
        == f"{path}:2: got 'identical `chosen` and `rejected`', allowed: two different answers"
    )


def test_empty_rollout_prompt_is_rejected(tmp_path: Path) -> None:
    path = _lines(tmp_path / "p", {"prompt": "fine"}, {"prompt": "\t"})
    with pytest.raises(DataError) as caught:
        load_prompts(_config(tmp_path, prompts="p"))
    assert str(caught.value) == f"{path}:2: got 'blank `prompt`', allowed: `prompt` with text"


@pytest.mark.parametrize("loader", [load_demonstrations, load_preferences, load_prompts])
def test_unreadable_files_are_named(tmp_path: Path, loader: Callable[[RunConfig], object]) -> None:
    field = f"data.{loader.__name__.removeprefix('load_')}"
    with pytest.raises(ConfigError, match=f"^{field}: got 'no file', allowed: a file of JSON lines"):
        loader(_config(tmp_path))
    name = field.removeprefix("data.")
    with pytest.raises(ConfigError) as caught:
        loader(_config(tmp_path, **{name: "absent.jsonl"}))
    assert str(caught.value) == f"{field}: got '{tmp_path / 'absent.jsonl'}', allowed: a file that exists"
    with pytest.raises(ConfigError) as caught:
        loader(_config(tmp_path, **{name: str(tmp_path)}))
    assert str(caught.value).startswith(
        f"{field}: got '{tmp_path}?split=train', allowed: a dataset that can be"
    )
    assert "doesn't contain any data files" in str(caught.value)


def test_split_without_training_records_is_rejected(tmp_path: Path) -> None:
    _lines(tmp_path / "p", {"prompt": "question 6"})
    with pytest.raises(ConfigError, match="got '1 records, all held out', allowed: more prompts"):
        load_prompts(_config(tmp_path, prompts="p"))


def _sentences(path: Path, count: int = 600) -> Path:
    rows = [
        {"text": f"film  {i} is {'very ' * (i % 5)}{'good' if i % 2 else 'bad'} .", "label": i % 2}
        for i in range(count)
    ]
    return _lines(path, *rows, {"text": "too short", "label": 1}, rows[0])


def test_sentences_become_demonstrations_and_prompts(tmp_path: Path) -> None:
    _sentences(tmp_path / "s")
    config = _config(tmp_path, sentences="s", prompt_words=2)
    demonstrations, prompts = load_demonstrations(config), load_prompts(config)

    texts = {d.prompt + d.completion for d in (*demonstrations.train, *demonstrations.heldout)}
    assert all(text.startswith("film ") and "  " not in text and text.endswith(" .") for text in texts)
    assert {d.prompt for d in demonstrations.heldout} == set(prompts.heldout)
    assert {d.prompt for d in demonstrations.train} == set(prompts.train)
    assert len(prompts.train) == len(set(prompts.train))
    # Shares 0.45 : 0.35 : 0.20 of 600 sentences.
    assert 200 <= len(texts) <= 340


def test_pairs_of_sentences_prefer_label_one_and_use_no_other_part(tmp_path: Path) -> None:
    _sentences(tmp_path / "s")
    config = _config(tmp_path, sentences="s", prompt_words=2)
    demonstrations, preferences = load_demonstrations(config), load_preferences(config)

    compared = [*preferences.train, *preferences.heldout]
    assert len(compared) > 60
    assert all(p.chosen.endswith("good .") and p.rejected.endswith("bad .") for p in compared)
    assert all(p.prompt == "" for p in compared)
    # Lengths are paired: neither label is longer on average by a word.
    gaps = [len(p.chosen.split()) - len(p.rejected.split()) for p in compared]
    assert abs(sum(gaps) / len(gaps)) < 1
    used = {text for p in compared for text in (p.chosen, p.rejected)}
    assert not used & {d.prompt + d.completion for d in (*demonstrations.train, *demonstrations.heldout)}
    for pair in preferences.heldout:
        assert all(is_heldout(config, " ".join(t.split()[:2])) for t in (pair.chosen, pair.rejected))


def test_sentences_need_both_labels_and_valid_ones(tmp_path: Path) -> None:
    _lines(tmp_path / "one", *({"text": f"word word word {i}", "label": 1} for i in range(50)))
    with pytest.raises(ConfigError, match="^data.sentences: got 'sentences of only one label'"):
        load_preferences(_config(tmp_path, sentences="one"))
    path = _lines(tmp_path / "bad", {"text": "a b c d", "label": 2})
    with pytest.raises(InvalidInput) as caught:
        load_preferences(_config(tmp_path, sentences="bad"))
    assert str(caught.value) == f"{path}:1: got '`label` = 2', allowed: `label` = 0 or 1"


def test_own_file_takes_precedence_over_sentences(tmp_path: Path) -> None:
    _sentences(tmp_path / "s")
    _lines(tmp_path / "c", *({"prompt": f"q {i}", "chosen": "a", "rejected": "b"} for i in range(30)))
    config = _config(tmp_path, sentences="s", preferences="c")
    split = load_preferences(config)
    assert {*split.train, *split.heldout} == {Preference(f"q {i}", "a", "b") for i in range(30)}
