"""Processes that a benchmark of the weight path controls by lines, and their CPU time."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from fairlead.errors import FairleadError
from fairlead.local.probes import GrpcHealth


class Child:
    """A module of ours as a process that answers each line with one JSON object."""

    def __init__(self, module: str, *arguments: object) -> None:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._usage = psutil.Process(self._popen.pid)

    def send(self, line: str) -> None:
        """Send a question without waiting."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{line}\n")
        self._popen.stdin.flush()

    def answer(self) -> dict[str, float]:
        """Wait for the answer to the oldest question.

        Raises:
            FairleadError: if the process has ended.
        """
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise FairleadError(f"a process of the benchmark ended: {self._popen.args!r}")
        found: dict[str, float] = json.loads(line)
        return found

    def ask(self, line: str) -> dict[str, float]:
        """Send a question and return its answer."""
        self.send(line)
        return self.answer()

    def cpu_seconds(self) -> float:
        """CPU seconds of all its threads so far."""
        times = self._usage.cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """Stop it."""
        self._popen.kill()
        self._popen.communicate()


class Origin:
    """The weights service, started as in a run."""

    def __init__(self, store: Path, **settings: object) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        values: dict[str, object] = {"path": store, "bind": self.address} | settings
        flags = [part for key, value in values.items() for part in ("--set", f"weights.{key}={value}")]
        command = [sys.executable, "-m", "services.weights", *flags, "--set", "observe.metrics_port=-1"]
        self._popen = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self._usage = psutil.Process(self._popen.pid)

    async def wait_ready(self) -> None:
        """Wait until it serves."""
        probe = GrpcHealth(self.address)
        while not await probe():
            if self._popen.poll() is not None:
                raise FairleadError("the weights service of the benchmark ended")

    def cpu_seconds(self) -> float:
        """CPU seconds of all its threads so far."""
        times = self._usage.cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """Stop it."""
        self._popen.kill()
        self._popen.wait()


@contextmanager
def closing(processes: Sequence[Child | Origin]) -> Iterator[None]:
    """Stop all of them, also after errors."""
    try:
        yield
    finally:
        for process in processes:
            process.close()
