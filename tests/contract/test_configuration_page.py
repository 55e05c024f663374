"""docs/configuration.md says what the docstrings say; a saved configuration gives back the run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fairlead.config import load
from fairlead.config.run import field_names
from fairlead.config.saving import save

ROOT = Path(__file__).parents[2]


def test_the_configuration_page_is_the_docstrings():
    spec = importlib.util.spec_from_file_location("table", ROOT / "docs" / "configuration_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == module.page(), "run `python docs/configuration_table.py`"
    for key in field_names():
        assert f"`{key.rpartition('.')[2]}`" in page or f"`[{key}]`" in page
    assert "|  |" not in page, "a key has no docstring"


def test_a_saved_configuration_loads_as_the_same_but_for_its_secrets(tmp_path: Path):
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
            "queue.password": "hunter2",
            "observe.tensorboard": False,
        }
    )
    path = tmp_path / "config.toml"
    save(config, path)
    assert "hunter2" not in path.read_text()
    again = load(path)
    expected = config.model_dump()
    expected["queue"] |= {"password": None, "redis_url": "rediss://user@queue.example:6380/1"}
    assert again.model_dump() == expected
    save(again, path)
    assert load(path) == again


def test_relative_folders_are_saved_as_absolute_ones(tmp_path: Path):
    path = tmp_path / "config.toml"
    save(load(), path)
    again = load(path)
    assert again.runs == Path.cwd() / "runs"
    assert again.base == Path.cwd()
