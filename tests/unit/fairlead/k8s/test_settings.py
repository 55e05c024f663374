"""Settings by process: what each ConfigMap contains, and that processes read the same from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.config import load
from fairlead.config.run import field_names
from fairlead.config.saving import as_toml, is_selected
from fairlead.k8s.settings import READS

CONFIGS = sorted((Path(__file__).parents[4] / "configs").glob("*.toml"))
CHANGED = {
    "ppo.updates": {"trainer"},
    "ppo.lora.rank": {"policy", "rollout-worker", "trainer"},
    "gateway.timeout_seconds": {"gateway"},
    "rollout_worker.retry_attempts": {"rollout-worker"},
    "reward.batching.max_items": {"reward", "rollout-worker", "gateway", "trainer"},
    "feedback.origin": {"feedback"},
    "sft.epochs": {"trainer"},
    "local.max_restarts": set(),
    "observe.log_level": set(READS),
}
"""Processes that are replaced when a setting changes."""


def test_keys_exist():
    known = set(field_names())
    assert not [key for keys in READS.values() for key in keys if key not in known]


def test_a_setting_reaches_only_the_processes_that_read_it():
    assert set(CHANGED) <= set(field_names())
    readers = {key: {name for name, keys in READS.items() if is_selected(key, keys)} for key in CHANGED}
    assert readers == CHANGED


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_the_part_of_a_file_is_valid_and_gives_the_same_settings(file, tmp_path):
    whole = load(file)
    part = tmp_path / "run.toml"
    for process in READS:
        if process == "reference" and whole.reference.engine == "trainer":
            continue  # no such service
        part.write_text(as_toml(whole, without_defaults=True, only=READS[process]))
        found = load(part)
        for key in READS[process]:
            assert _value(found, key) == _value(whole, key), (process, key)


def _value(config: object, key: str) -> object:
    for name in key.split("."):
        config = getattr(config, name)
    return str(config.absolute()) if isinstance(config, Path) else config
