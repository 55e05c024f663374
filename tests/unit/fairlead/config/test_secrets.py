"""Secrets of Redis URLs reach no file and no message, in any form of the URL."""

from __future__ import annotations

import stat
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from fairlead.config import load
from fairlead.config.infrastructure import QueueSection, redis_url_without_secrets
from fairlead.config.saving import as_toml, save
from fairlead.errors import ConfigError
from fairlead.transports.rollouts.redis_connection import address, check_url, client_options

MARK = "hunter2"
SECRETS = st.text(alphabet="abZ09:/?#@%&=[]!$ \"'\\é☃", max_size=8).flatmap(
    lambda text: st.sampled_from([f"{MARK}{text}", f"{text}{MARK}", f"{text}{MARK}{text}"])
)
SHAPES = (
    "redis://:{secret}@127.0.0.1:7999/0",
    "rediss://user:{secret}@queue.example:6380/1?db=2",
    "redis://127.0.0.1:7999/0?password={secret}",
    "redis://127.0.0.1:7999/0?db=1&password={secret}&socket_timeout=3",
    "unix://:{secret}@/run/redis.sock?db=1",
    "unix:///run/redis.sock?password={secret}",
    "redis://:{secret}@[::1]:7999",
)


@given(
    secret=SECRETS,
    shape=st.sampled_from(SHAPES),
    encoded=st.booleans(),
    section=st.sampled_from(("queue", "keys")),
)
def test_secret_of_a_redis_url_is_in_no_file_and_no_message(
    secret: str, shape: str, encoded: bool, section: str
) -> None:
    url = shape.format(secret=urllib.parse.quote(secret, safe="") if encoded else secret)
    try:
        config = load(overrides={f"{section}.redis_url": url})
    except ConfigError as error:
        assert MARK not in str(error)
        assert f"{section}.redis_url" in str(error)
        return
    assert MARK not in as_toml(config)
    assert MARK not in address(url), "the name of the server in logs and errors"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "redis://localhost"),
        ("redis://127.0.0.1:7999/3", "redis://127.0.0.1:7999/3"),
        ("redis://:p%40ss@h:1/0", "redis://h:1/0"),
        ("rediss://user:secret@h:6380/1?password=x&db=4", "rediss://user@h:6380/1?db=4"),
        ("redis://:x@[::1]:1/0", "redis://[::1]:1/0"),
        ("unix:///run/redis.sock?db=1&password=x", "unix:///run/redis.sock?db=1"),
    ],
)
def test_url_is_shown_without_secrets(url: str, shown: str) -> None:
    assert redis_url_without_secrets(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://:my#hunter2@127.0.0.1:1/0",
        "redis://:my/hunter2@127.0.0.1:1/0",
        "redis://:1/hunter2@127.0.0.1:1/0",
        "redis://:1?hunter2@127.0.0.1:1/0",
        "redis://h:port-hunter2/0",
        "redis://[hunter2/0",
        "http://:hunter2@h:1",
        "unix://?password=hunter2",
        "redis://h:1/hunter2",
        "redis://h:1/1/2",
        "redis://h:1/-1",
        "hunter2",
    ],
)
def test_invalid_url_is_refused_with_a_remedy_and_without_its_content(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(overrides={"queue.redis_url": url})
    assert str(caught.value).startswith(
        "queue.redis_url: got 'an invalid URL', allowed: redis://HOST:PORT/DB"
    )
    assert "percent-encode special characters of a password" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        check_url(QueueSection.model_construct(redis_url=url))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("queue", "redis://:hunter2@h"),
        ("queue", ["redis://:hunter2@h"]),
        ("keys", "hunter2"),
        ("queue.redis_url", ["redis://:hunter2@h"]),
        ("queue.redis_password", {"hunter2": "hunter2"}),
        ("queue.redis_ulr", "redis://:hunter2@h"),
        ("policy.addresses", "redis://:hunter2@h"),
        ("queue.redis://:hunter2@h", 1),
    ],
)
def test_secret_in_the_wrong_place_is_not_quoted(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        load(overrides={key: value})
    assert "hunter2" not in str(caught.value)


def test_section_in_the_environment_must_be_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_NAME", "my-run")
    monkeypatch.setenv("FAIRLEAD_QUEUE", "redis://:hunter2@h")
    with pytest.raises(ConfigError, match=r"FAIRLEAD_QUEUE: got 'a value', allowed: a table of settings"):
        load()


def test_saved_configuration_is_readable_only_by_its_owner(tmp_path: Path) -> None:
    save(load(), tmp_path / "config.toml")
    assert stat.S_IMODE((tmp_path / "config.toml").stat().st_mode) == 0o600


def test_unix_socket_has_no_tcp_options() -> None:
    options = client_options(QueueSection(redis_url="unix:///run/x.sock", redis_password=SecretStr("x")))
    assert "socket_keepalive" not in options
    assert client_options(QueueSection(redis_url="redis://h"))["socket_keepalive"] is True
