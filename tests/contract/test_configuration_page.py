"""The pages of configuration keys match the docstrings; a saved configuration loads as the same run."""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from fairlead.config import load
from fairlead.config.run import field_names
from fairlead.config.saving import save

ROOT = Path(__file__).parents[2]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("table", ROOT / "docs" / "configuration_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keys_of(table: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def keys_on(page: str) -> Iterator[str]:
    section = ""
    for line in page.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## `[").removesuffix("]`") + "." if "`[" in line else ""
        elif line.startswith("| `"):
            yield section + line.split("`")[1]


def test_configuration_pages_match_the_docstrings():
    for name, text in generator().pages().items():
        assert (ROOT / "docs" / name).read_text() == text, "run `python docs/configuration_table.py`"
        assert "|  |" not in text, "a key has no docstring"


def test_every_key_is_on_exactly_one_page():
    names = set(field_names())
    tables = {name.rpartition(".")[0] for name in names}
    listed = [key for text in generator().pages().values() for key in keys_on(text)]
    assert sorted(listed) == sorted(names - tables)


def test_keys_of_shipped_files_are_on_the_page_of_common_keys():
    common = set(keys_on(generator().pages()["configuration.md"]))
    for folder in ("configs", "examples", "k8s"):
        for file in (ROOT / folder).rglob("*.toml"):
            used = set(keys_of(tomllib.loads(file.read_text())))
            # Options of vLLM have one key.
            assert {key for key in used if key.rpartition(".")[0] not in common} <= common, file


def test_saved_configuration_loads_unchanged_without_secrets(tmp_path: Path):
    config = load(
        overrides={
            "name": "kept",
            "runs": str(tmp_path / "all runs"),
            "base": str(tmp_path),
            "data.prompts": 'odd "name" \\ ü\x7f.jsonl',
            "ppo.learning_rate": 2.5e-7,
            "policy.addresses": ["127.0.0.1:0", "[::1]:5001"],
            "sampling.stop_strings": ["\n\n", "</s>"],
            "queue.redis_url": "rediss://user:hunter2@queue.example:6380/1",
            "queue.redis_password": "hunter2",
            "observe.tensorboard": False,
        }
    )
    path = tmp_path / "config.toml"
    save(config, path)
    assert "hunter2" not in path.read_text()
    again = load(path)
    expected = config.model_dump()
    expected["queue"] |= {"redis_password": None, "redis_url": "rediss://user@queue.example:6380/1"}
    assert again.model_dump() == expected
    save(again, path)
    assert load(path) == again


def test_relative_folders_are_saved_as_absolute(tmp_path: Path):
    path = tmp_path / "config.toml"
    save(load(), path)
    again = load(path)
    assert again.runs == Path.cwd() / "runs"
    assert again.base == Path.cwd()
