"""Files in every condition: compressed, columnar, damaged, hostile; errors name file and line."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fairlead.config import RunConfig, load
from fairlead.data import files
from fairlead.data.chat import Chat
from fairlead.data.demonstrations import Conversation, Demonstration, PlainText
from fairlead.data.kinds import KINDS, parser
from fairlead.data.lines import Line, parse
from fairlead.data.records import load_demonstrations, load_preferences, load_prompts
from fairlead.data.sources import attempt
from fairlead.errors import ConfigError, DataError
from fairlead.types import Message


def config(folder: Path, **data: object) -> RunConfig:
    settings: dict[str, object] = {f"data.{name}": value for name, value in data.items()}
    return load(overrides={"base": str(folder), "data.heldout_fraction": 1e-9, **settings})


def table(path: Path, rows: list[dict[str, object]], **how: object) -> Path:
    parquet.write_table(pa.Table.from_pylist(rows), path, **how)
    return path


ROWS: list[dict[str, object]] = [
    {"prompt": "question 1", "completion": "answer 1", "messages": None, "text": None, "extra": 1.5},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"text": "only text ü", "prompt": None},
]
RECORDS = (
    Demonstration("question 1", "answer 1"),
    Conversation((Message("user", "a"), Message("assistant", "b"))),
    PlainText("only text ü"),
)


def test_parquet_is_detected_by_content(tmp_path):
    table(tmp_path / "d.parquet", ROWS)
    table(tmp_path / "no-suffix", ROWS, compression="zstd")
    for name in ("d.parquet", "no-suffix"):
        assert load_demonstrations(config(tmp_path, demonstrations=name)).train == RECORDS


def test_parquet_rows_keep_order_and_numbers_across_batches(tmp_path):
    rows: list[dict[str, object]] = [{"prompt": f"p {n}", "chosen": "a", "rejected": "b"} for n in range(700)]
    table(tmp_path / "whole.parquet", rows, row_group_size=100)
    found = load_preferences(config(tmp_path, preferences="whole.parquet")).train
    assert [record.prompt for record in found] == [f"p {n}" for n in range(700)]
    rows[611] = {"prompt": "p", "chosen": "same", "rejected": "same"}
    table(tmp_path / "bad.parquet", rows, row_group_size=100)
    with pytest.raises(DataError) as caught:
        load_preferences(config(tmp_path, preferences="bad.parquet"))
    assert (caught.value.file, caught.value.line) == (str(tmp_path / "bad.parquet"), 612)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": [1, 2]}, "1: got '`prompt` of type number', allowed: `prompt` of type string"),
        ({"prompt": [b"a", b"b"]}, "1: got '`prompt` of type binary', allowed: `prompt` of type string"),
        ({"prompt": ["a", None]}, "2: got '`prompt` of type null', allowed: `prompt` of type string"),
        ({"question": ["a", "b"]}, "1: got 'the keys question', allowed: a key `prompt`"),
        ({"prompt": [{"a": 1}, None]}, "1: got '`prompt` of type object', allowed: `prompt` of type string"),
        ({"prompt": [["a"], ["b"]]}, "1: got '`prompt[0]` of type string', allowed: a JSON object"),
    ],
)
def test_parquet_column_of_wrong_type_is_named(tmp_path, columns, message):
    parquet.write_table(pa.table(columns), tmp_path / "p.parquet")
    with pytest.raises(DataError) as caught:
        load_prompts(config(tmp_path, prompts="p.parquet"))
    assert str(caught.value) == f"{tmp_path / 'p.parquet'}:{message}"


def test_parquet_invalid_utf8_names_its_row(tmp_path):
    broken = pa.array([b"fine", b"bad \xff"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"prompt": broken}), tmp_path / "p.parquet")
    with pytest.raises(DataError) as caught:
        load_prompts(config(tmp_path, prompts="p.parquet"))
    assert str(caught.value) == (
        f"{tmp_path / 'p.parquet'}:2: got 'byte 0xff at position 4 of `prompt`', allowed: UTF-8"
    )


def test_parquet_column_without_python_type_is_skipped(tmp_path):
    times = pa.array([1, 2], pa.duration("ns"))
    parquet.write_table(pa.table({"prompt": ["a", "b"], "took": times}), tmp_path / "p.parquet")
    assert load_prompts(config(tmp_path, prompts="p.parquet")).train == ("a", "b")


def test_truncated_parquet_is_rejected_and_restored_file_is_read(tmp_path):
    path = tmp_path / "d.parquet"
    whole = table(path, ROWS * 50).read_bytes()
    run = config(tmp_path, demonstrations="d.parquet")
    for length in (4, len(whole) // 3, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(
            DataError, match=r"got 'a damaged Parquet file', allowed: a whole file \(.*\)"
        ) as caught:
            load_demonstrations(run)
        assert caught.value.file == str(path)
    for place in range(4, len(whole) - 8, 97):
        # A page or the footer is overwritten: an error by name, or rows, but nothing else.
        path.write_bytes(whole[:place] + bytes(len(whole[place : place + 40])) + whole[place + 40 :])
        try:
            load_demonstrations(run)
        except DataError as error:
            assert error.file == str(path)
    path.write_bytes(whole)
    assert load_demonstrations(run).train == RECORDS * 50


def test_file_named_parquet_with_other_content_is_rejected(tmp_path):
    (tmp_path / "p.parquet").write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match="a damaged Parquet file"):
        load_prompts(config(tmp_path, prompts="p.parquet"))
    table(tmp_path / "none.parquet", ROWS[:1])
    parquet.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="none.parquet:1: got 'an empty file', allowed: .* rows of Parquet"):
        load_prompts(config(tmp_path, prompts="none.parquet"))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    table(tmp_path / "d.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError) as caught:
        load_demonstrations(config(tmp_path, demonstrations="d.parquet"))
    assert str(caught.value) == (
        f"data.demonstrations: got '{tmp_path / 'd.parquet'}', allowed: JSON lines, or pyarrow to read "
        "Parquet: pip install 'fairlead-rlhf[data]'"
    )


def test_truncated_gzip_is_rejected_and_restored_file_is_read(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    whole = gzip.compress(
        "".join(json.dumps({"prompt": f"p {n * 7919}"}) + "\n" for n in range(900)).encode()
    )
    run = config(tmp_path, prompts=path.name)
    for length in (2, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError) as caught:
            load_prompts(run)
        assert str(caught.value).startswith(f"{path}:{caught.value.line}: got ")
    path.write_bytes(whole)
    assert len(load_prompts(run).train) == 900


def test_json_array_file_gets_a_hint(tmp_path):
    (tmp_path / "p").write_text(json.dumps([{"prompt": "a"}], indent=1))
    with pytest.raises(
        DataError, match=r"p:1: got '\[', allowed: a JSON object .* to lines with `jq -c '\.\[\]'`"
    ):
        load_prompts(config(tmp_path, prompts="p"))


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (
            json.dumps({"prompt": "a"}, indent=1).encode(),
            r"got '\{', .*; put each object on one line with `jq -c \.`",
        ),
        (
            '{"prompt": "a"}\n'.encode("utf-16"),
            r"allowed: UTF-8; this is UTF-16: convert it with `iconv -f UTF-16",
        ),
        (b'{"prompt": \n', r"allowed: a JSON object \(Expecting value: .*\)$"),
        (b'{"prompt": "a"}\n\xff\xfe\n', r"p:2: got 'byte 0xff at position 0', allowed: UTF-8$"),
    ],
)
def test_common_mistakes_of_a_file_get_a_hint(tmp_path, content: bytes, hint: str):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(DataError, match=hint):
        load_prompts(config(tmp_path, prompts="p"))


def test_link_to_itself_is_an_error_of_the_key(tmp_path):
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(ConfigError, match=r"prompts: got '.*loop\.jsonl', allowed: a readable file"):
        load_prompts(config(tmp_path, prompts="loop.jsonl"))


def test_overlong_line_is_not_read_completely(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 20)
    with gzip.open(tmp_path / "bomb.gz", "wb") as file:
        file.write(b'{"prompt": "a"}\n' + bytes(50 << 20))
    with pytest.raises(DataError, match="bomb.gz:2: got 'a line of more than 1 MiB'"):
        load_prompts(config(tmp_path, prompts="bomb.gz"))


def test_long_line_below_the_limit_is_read(tmp_path):
    text = "word " * 400_000
    (tmp_path / "p").write_text(json.dumps({"prompt": text}) + "\n")
    assert load_prompts(config(tmp_path, prompts="p")).train == (text,)


def test_skip_applies_to_invalid_lines_and_not_to_damaged_files(tmp_path, caplog):
    (tmp_path / "p").write_bytes(b'{"prompt": "a"}\n{"prompt": 1}\n\xff\n{"prompt": "b"}\n{"prompt": " "}\n')
    run = config(tmp_path, prompts="p", bad_lines="skip")
    assert load_prompts(run).train == ("a", "b")
    assert "p: skipped 3 invalid lines, the first: " in caplog.text
    with pytest.raises(DataError, match="p:2: "):
        load_prompts(config(tmp_path, prompts="p"))
    (tmp_path / "p").write_bytes(b"{}\n[]\n")
    with pytest.raises(DataError, match="p:1: got 'the keys none'"):
        load_prompts(run)
    (tmp_path / "p").write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 1000)[:-4])
    with pytest.raises(DataError, match="a damaged gzip"):
        load_prompts(run)


def test_sources_of_several_kinds_are_concatenated(tmp_path):
    table(tmp_path / "a.parquet", [{"prompt": "a"}])
    (tmp_path / "b.gz").write_bytes(gzip.compress(b'{"prompt": [{"role": "user", "content": "b"}]}'))
    found = load_prompts(config(tmp_path, prompts=["a.parquet", "b.gz"])).train
    assert found == ("a", Chat((Message("user", "b"),)))
    with pytest.raises(ConfigError, match="^data.prompts: got 'no file'"):
        load_prompts(config(tmp_path, prompts=["a.parquet", ""]))


KEYS = ("prompt", "completion", "messages", "text", "chosen", "rejected", "responses", "label")
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["\ud800", "\ude00x", "\x00", "user", "assistant", "system"]),
)
TEXTS = st.sampled_from(["a", "b c", "", " ", "\ud83d", "\n\nAssistant: x", "\x00", "é"])
NEARLY = st.one_of(
    TEXTS,
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXTS}), max_size=3
    ),
    st.lists(
        st.fixed_dictionaries({"text": TEXTS}, optional={"rank": SCALARS, "score": st.floats()}), max_size=3
    ),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from(["role", "content", "text", "rank", "\ud800"]), inner, max_size=2),
    ),
    max_leaves=6,
)
HOSTILE = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@HOSTILE
@given(content=st.binary(max_size=200), number=st.integers(1, 2))
@example(content=b"[" * 100_000, number=1)
@example(content=b'{"a":' * 100_000, number=1)
@example(content=b"9" * 10_000, number=1)
@example(content=b'{"prompt": 1e999}', number=1)
@example(content=b"\xef\xbb\xbf{}", number=2)
@example(content=b'{"prompt": "\\ud800"}', number=1)
def test_any_bytes_parse_or_name_their_line(content, number):
    found = parse("file", number, content)
    if isinstance(found, DataError):
        assert str(found).startswith(f"file:{number}: got ")
    else:
        assert found.number == number
        assert isinstance(found.values, dict)


@HOSTILE
@given(values=st.dictionaries(st.sampled_from(KEYS), NEARLY | JUNK, max_size=5), kind=st.sampled_from(KINDS))
@example(
    values={"prompt": "a", "responses": [{"text": "x", "rank": 10**400}, {"text": "y", "rank": 1}]},
    kind="preferences",
)
@example(values={"text": "a", "label": float("nan")}, kind="sentences")
def test_any_object_is_a_record_or_names_its_line(values, kind):
    found = attempt(Line("file", 7, values), parser(load(), kind))
    if isinstance(found, DataError):
        assert str(found).startswith("file:7: got ")
        str(found).encode()
    else:
        # What has been let in can be hashed, split and encoded.
        hash(found.record)
        f"{found.split_key}{found.record}".encode()
