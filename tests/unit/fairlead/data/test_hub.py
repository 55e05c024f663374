"""Folders and datasets of the hub: the rows that a name selects, and errors for those that cannot be read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from fairlead.config import RunConfig, load
from fairlead.data import hub
from fairlead.data.hub import DatasetName, parse_name
from fairlead.data.records import load_preferences, load_prompts
from fairlead.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def config(folder: Path, **data: object) -> RunConfig:
    settings: dict[str, object] = {f"data.{name}": value for name, value in data.items()}
    return load(overrides={"base": str(folder), "data.heldout_fraction": 1e-9, **settings})


def lines(path: Path, *prompts: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def test_dataset_name_is_parsed():
    assert parse_name("org/name", field="f") == DatasetName("org/name", None, "train", None)
    parsed = parse_name("org/name?revision=v1&split=train%5B:5%5D&config=a%26b", field="f")
    assert parsed == DatasetName("org/name", "a&b", "train[:5]", "v1")
    assert str(parsed) == "org/name?config=a&b&split=train[:5]&revision=v1"
    for name in ("a/b?", "a/b?split=", "a/b?splat=x", "a/b?split=x&split=y", "a/b?split"):
        if name == "a/b?":
            assert parse_name(name, field="f").split == "train"
            continue
        with pytest.raises(
            ConfigError, match=r"^f: got 'a/b\?.*', allowed: each option once after the `\?`: config="
        ):
            parse_name(name, field="f")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("org/name", True),
        ("org/a.name-1_x", True),
        ("name", False),
        ("data/train.jsonl", False),
        ("data/train.JSONL.gz", False),
        ("a/b/c", False),
        ("../b", False),
        ("/org/name", False),
    ],
)
def test_paths_that_may_be_hub_ids(path, expected):
    assert hub.may_be_hub_id(path) is expected


def test_folder_is_read_by_split(tmp_path):
    lines(tmp_path / "set" / "train.jsonl", "a", "b", "c")
    lines(tmp_path / "set" / "test.jsonl", "d")
    assert load_prompts(config(tmp_path, prompts="set")).train == ("a", "b", "c")
    assert load_prompts(config(tmp_path, prompts="set?split=test")).train == ("d",)
    assert load_prompts(config(tmp_path, prompts=["set?split=train[1:]", "set"])).train == (
        *("b", "c"),
        *("a", "b", "c"),
    )
    with pytest.raises(ConfigError, match=r'Unknown split "dev"\. Should be one of'):
        load_prompts(config(tmp_path, prompts="set?split=dev"))


def test_folder_of_parquet_with_conversations_and_an_invalid_row(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}]
    rows = [{"chosen": turns, "rejected": [turns[0], {"role": "assistant", "content": "no"}]}] * 3
    (tmp_path / "set").mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / "train-00000-of-00001.parquet")
    found = load_preferences(config(tmp_path, preferences="set")).train
    assert [(str(pair.prompt), pair.chosen, pair.rejected) for pair in found] == [
        ("user: q", "yes", "no")
    ] * 3
    rows[1] = {"chosen": turns, "rejected": turns}
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError) as caught:
        load_preferences(config(tmp_path, preferences="set"))
    assert str(caught.value).startswith(
        f"{tmp_path / 'set'}?split=train:2: got 'identical `chosen` and `rejected`'"
    )


def test_reads_a_saved_dataset(tmp_path):
    one = datasets.Dataset.from_list([{"prompt": "a"}])
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": datasets.Dataset.from_list([{"prompt": "b"}])}).save_to_disk(
        tmp_path / "two"
    )
    assert load_prompts(config(tmp_path, prompts=["one", "two", "two?split=test"])).train == ("a", "a", "b")
    with pytest.raises(ConfigError, match="allowed: a split of the dataset; it has no 'dev'"):
        load_prompts(config(tmp_path, prompts="two?split=dev"))


def test_folder_without_a_common_table_is_rejected_until_repaired(tmp_path):
    run = config(tmp_path, prompts="set")
    lines(tmp_path / "set" / "train.jsonl", "a", "b")
    with (tmp_path / "set" / "train.jsonl").open("a") as file:
        file.write('{"prompt": ')
    with pytest.raises(
        DataError, match=r"set\?split=train:1: got 'files that do not form a table: JSON parse error"
    ):
        load_prompts(run)
    lines(tmp_path / "set" / "train.jsonl", "a", "b")
    assert load_prompts(run).train == ("a", "b")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ConfigError, match="doesn't contain any data files"):
        load_prompts(config(tmp_path, prompts="bare"))


def test_table_without_rows_is_rejected(tmp_path):
    datasets.Dataset.from_dict({"prompt": []}).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"set\?split=train:1: got 'a dataset without rows'"):
        load_prompts(config(tmp_path, prompts="set"))


def test_missing_datasets_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError) as caught:
        load_prompts(config(tmp_path, prompts="org/name"))
    assert str(caught.value) == (
        "data.prompts: got 'org/name, neither a file nor a folder here', allowed: a file that exists; "
        "for datasets of the hub: pip install 'fairlead-rlhf[data]'"
    )
    with pytest.raises(ConfigError, match="fairlead"):
        load_prompts(config(tmp_path, prompts=str(tmp_path)))
