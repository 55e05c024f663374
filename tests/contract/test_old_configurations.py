"""The configuration files of release 0.1.0 load: values arrive, and warnings name the new keys.

configurations_0_1_0/ holds the TOML files of that release without their comments, the environment of its
Kubernetes manifests, and every_key.toml, which sets each of its keys to a value that is not the default.
"""

from __future__ import annotations

import functools
import logging
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pydantic import SecretStr

from fairlead.config import RunConfig, load, retired
from fairlead.config.saving import save

FOLDER = Path(__file__).with_name("configurations_0_1_0")
EVERY_KEY = FOLDER / "every_key.toml"
NUM_KEYS = 293
RETIRED = {**retired.RENAMED, **retired.OVERRIDES, **retired.REMOVED}


def leaves(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def value_of(config: RunConfig, key: str) -> object:
    value = functools.reduce(getattr, key.split("."), config)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def check_values(config: RunConfig, values: Mapping[str, object]) -> None:
    for key, value in values.items():
        if key in retired.REMOVED:
            continue
        if key in retired.OVERRIDES:
            service, _, limit = key.partition(".")
            assert getattr(config.server_limits(service), limit) == value, key
        else:
            assert value_of(config, retired.RENAMED.get(key, key)) == value, key


def check_warnings(messages: list[str], keys: set[str]) -> None:
    """Exactly one warning for each retired key, with what to do instead."""
    assert len(messages) == len(keys)
    for key in keys:
        (message,) = [message for message in messages if message.startswith(f"{key} ")]
        if key in retired.REMOVED:
            assert message.endswith(f"no longer has an effect: the value is fixed at {RETIRED[key]}")
        else:
            assert f"is deprecated: use {RETIRED[key]}" in message


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.name)
def test_file_loads_with_its_values(path: Path, caplog: pytest.LogCaptureFixture):
    values = dict(leaves(tomllib.loads(path.read_text())))
    with caplog.at_level(logging.WARNING):
        config = load(path)
    check_values(config, values)
    check_warnings(caplog.messages, {key for key in values if key in RETIRED})


def test_every_key_covers_every_retired_key():
    values = dict(leaves(tomllib.loads(EVERY_KEY.read_text())))
    assert len(values) == NUM_KEYS
    assert set(RETIRED) <= set(values)


def test_retired_keys_work_as_flags(caplog: pytest.LogCaptureFixture):
    every = dict(leaves(tomllib.loads(EVERY_KEY.read_text())))
    values = {key: every[key] for key in RETIRED}
    with caplog.at_level(logging.WARNING):
        config = load(overrides={key: str(value) for key, value in values.items()})
    check_values(config, values)
    check_warnings(caplog.messages, set(RETIRED))


def test_retired_keys_work_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    every = dict(leaves(tomllib.loads(EVERY_KEY.read_text())))
    values = {key: every[key] for key in RETIRED}
    for key, value in values.items():
        monkeypatch.setenv(f"FAIRLEAD_{key.upper().replace('.', '__')}", str(value))
    with caplog.at_level(logging.WARNING):
        config = load()
    check_values(config, values)
    assert len(caplog.messages) == len(RETIRED)
    assert "FAIRLEAD_QUEUE__PASSWORD is deprecated: use FAIRLEAD_QUEUE__REDIS_PASSWORD" in caplog.messages


def test_environment_of_the_manifests_loads(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    for line in (FOLDER / "cluster.env").read_text().splitlines():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        config = load(FOLDER / "kubernetes.toml")
    assert {
        service: config.server_limits(service).drain_seconds
        for service in ("policy", "reward", "reference", "weights", "gateway")
    } == {"policy": 120, "reward": 120, "reference": 120, "weights": 30, "gateway": 120}
    assert config.queue.redis_url == "redis://redis:6379"
    assert len(caplog.messages) == 4


def test_saved_configuration_keeps_the_limits_of_one_service(tmp_path: Path):
    config = load(overrides={"reward.max_message_bytes": 2048, "server.max_message_bytes": 4096})
    save(config, tmp_path / "config.toml")
    again = load(tmp_path / "config.toml")
    assert again.server_limits("reward").max_message_bytes == 2048
    assert again.server_limits("policy").max_message_bytes == 4096
