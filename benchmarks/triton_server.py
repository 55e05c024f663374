"""A real Triton on the CPU: the server in the package `nvidia-pytriton`.

Its environment is created once, in `benchmarks/out/triton/` (or where TRITON_ENVIRONMENT says), from the
system's own Python, whose library the Python backend is linked against. Torch and transformers are those of
the calling environment. Used by the slow tests and by benchmarks/scoring.py;
`python -m benchmarks.triton_server` only creates the environment.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from benchmarks.result import OUT

PACKAGE = "nvidia-pytriton==0.7.0"
_PYTHON = f"/usr/bin/python3.{sys.version_info.minor}"
_SAME = ("torch", "transformers", "safetensors", "tokenizers")
_INSTALL_SECONDS = 900


class NoTriton(Exception):
    """Triton is not available; says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with Triton in it."""

    folder: Path
    """Interpreter of the environment."""

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return self.folder / "lib" / Path(_PYTHON).name / "site-packages"

    @property
    def binary(self) -> Path:
        """`tritonserver`."""
        return self.packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """The backends, with the stub of this Python in place."""
        return self.folder / "backends"

    def variables(self) -> dict[str, str]:
        """Environment variables of the server."""
        libraries = [str(self.packages / "nvidia_pytriton.libs"), os.environ.get("LD_LIBRARY_PATH", "")]
        path = f"{self.folder / 'bin'}:{os.environ.get('PATH', '')}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return kept | {"LD_LIBRARY_PATH": ":".join(filter(None, libraries)), "PATH": path}


def environment() -> Environment:
    """Return the environment; create it if it does not exist, which takes a minute.

    Raises:
        NoTriton: if the system has no Python of this version with its library, or packages cannot be
            installed.
    """
    folder = Path(os.environ.get("TRITON_ENVIRONMENT") or OUT / "triton").resolve()
    wanted = [PACKAGE, *(f"{name}=={importlib.metadata.version(name)}" for name in _SAME)]
    stamp = folder / "installed.txt"
    made = Environment(folder)
    if stamp.is_file() and stamp.read_text().split("\n") == wanted:
        return made
    _check_python()
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _call([_PYTHON, "-m", "venv", str(folder)])
    install = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    _call([*install, *wanted])
    _place_backend(made)
    stamp.write_text("\n".join(wanted))
    return made


def _check_python() -> None:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise NoTriton("the package has no Triton for this platform")
    if not Path(_PYTHON).is_file():
        raise NoTriton(f"no {_PYTHON}, which Triton's Python backend is linked against")
    probe = "import venv, ensurepip, sysconfig; print(sysconfig.get_config_var('INSTSONAME'))"
    found = subprocess.run([_PYTHON, "-c", probe], capture_output=True, text=True, check=False)
    if found.returncode or ".so" not in found.stdout:
        raise NoTriton(f"{_PYTHON} has no venv or no shared library: {(found.stderr or found.stdout)[-200:]}")


def _call(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_INSTALL_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoTriton(f"{' '.join(command[:4])}: {error}") from error
    if done.returncode:
        raise NoTriton(f"{' '.join(command[:4])}: {done.stderr.strip()[-500:]}")


def _place_backend(made: Environment) -> None:
    """Place the Python backend next to the stub for this version of Python, as PyTriton does."""
    source = made.packages / "pytriton" / "tritonserver"
    stub = source / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
    if not stub.is_file():
        raise NoTriton(f"the package has no Python backend for Python 3.{sys.version_info.minor}")
    shutil.copytree(source / "backends", made.backends, dirs_exist_ok=True)
    shutil.copy(stub, made.backends / "python" / stub.name)


@dataclass
class TritonServer:
    """One `tritonserver` process on free ports of 127.0.0.1. A context manager; ready once entered."""

    repository: Path
    """Model repository."""
    log: Path
    """File for its output."""
    cores: Sequence[int] = ()
    """Cores; all if empty."""
    threads: int = 1
    """OMP_NUM_THREADS of its models."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further flags."""
    ready_seconds: float = 600.0
    """Limit for loading, seconds."""

    def __enter__(self) -> Self:
        """Start it and wait until its models are loaded.

        Raises:
            NoTriton: see `environment`.
            RuntimeError: if it exits or does not become ready; the message has the end of its log.
        """
        made = environment()
        self.address, self.http_address = free_address(), free_address()
        flags = {
            "model-repository": str(self.repository),
            "backend-directory": str(made.backends),
            "grpc-address": "127.0.0.1",
            "grpc-port": self.address.rpartition(":")[2],
            "http-address": "127.0.0.1",
            "http-port": self.http_address.rpartition(":")[2],
            "allow-metrics": "false",
            "exit-timeout-secs": "5",
            **self.settings,
        }
        command = [str(made.binary), *(f"--{name}={value}" for name, value in flags.items())]
        if self.cores:
            command = ["taskset", "--cpu-list", ",".join(map(str, self.cores)), *command]
        if watch := shutil.which("setpriv"):
            # It exits with its parent, however that ends.
            command = [watch, "--pdeathsig", "TERM", *command]
        variables = made.variables() | {
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop it and the processes of its models."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(20)

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of the server and its models so far."""
        server = psutil.Process(self.process.pid)
        times = [one.cpu_times() for one in (server, *server.children(recursive=True))]
        return sum(one.user + one.system for one in times)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_seconds
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace")[-3_000:]
                raise RuntimeError(f"Triton is not ready (exit code {self.process.poll()}):\n{said}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.http_address}/v2/health/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False


def free_address() -> str:
    """Return a free local address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


if __name__ == "__main__":
    try:
        print(environment().binary)
    except NoTriton as error:
        print(f"no Triton: {error}", file=sys.stderr)
        sys.exit(2)
