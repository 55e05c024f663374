"""Start reward servers as processes on one core with one thread, and wait until they answer."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fairlead.errors import ProcessFailed

_READY_SECONDS = 180.0


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Pin the calling thread and the processes that it starts to some cores; all if empty."""
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def process(arguments: Sequence[str], *, core: Sequence[int], ready: str, log: Path) -> Iterator[int]:
    """Run a Python process within the block.

    Args:
        arguments: those of `python`.
        core: core that it is pinned to.
        ready: URL that answers 200 when the process is ready.
        log: file for its output.

    Yields:
        The process id.

    Raises:
        ProcessFailed: if it exits or takes too long.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment["PYTHONPATH"] = str(Path.cwd())
    with log.open("wb") as output, pinned(core):
        child = subprocess.Popen(
            [sys.executable, *arguments], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        _wait(child, ready, log)
        yield child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def reward_service(
    model: Path, *, core: Sequence[int], log: Path, settings: Mapping[str, object] | None = None
) -> Iterator[tuple[str, int, str]]:
    """Run our server. Yields its address, process id and metrics URL."""
    address, port = f"127.0.0.1:{free_port()}", free_port()
    values: dict[str, object] = {
        "reward.path": model,
        "reward.bind": address,
        "reward.threads": 1,
        "reward.batching.max_queue_seconds": 600,
        "reward.device": "cpu",
        # The same tokens for all: the other servers append nothing to a text.
        "reward.append_eos": "false",
        "observe.metrics_port": port,
    } | dict(settings or {})
    flags = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    url = f"http://127.0.0.1:{port}"
    arguments = ["-m", "services.reward", *flags]
    with process(arguments, core=core, ready=f"{url}/readyz", log=log) as pid:
        yield address, pid, f"{url}/metrics"


@contextlib.contextmanager
def gateway(reward: str, *, core: Sequence[int], log: Path) -> Iterator[tuple[str, int]]:
    """Run our HTTP gateway for a reward service. Yields its URL and process id."""
    address, port = f"127.0.0.1:{free_port()}", free_port()
    values = {"gateway.bind": address, "reward.addresses": f'["{reward}"]', "observe.metrics_port": port}
    flags = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    ready = f"http://127.0.0.1:{port}/readyz"
    with process(["-m", "services.gateway", *flags], core=core, ready=ready, log=log) as pid:
        yield f"http://{address}", pid


@contextlib.contextmanager
def other(module: str, model: Path, *, core: Sequence[int], log: Path) -> Iterator[tuple[str, int]]:
    """Run one of the servers in this folder. Yields its URL and process id."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ["-m", f"benchmarks.serving.{module}", str(model), str(port)]
    with process(arguments, core=core, ready=f"{url}/healthz", log=log) as pid:
        yield url, pid


def cpu_seconds(processes: Sequence[int]) -> float:
    """Return the CPU seconds that processes and their children have used."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in brackets, may contain anything; the fields follow it.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
    mine = set(processes)
    for _ in range(3):
        mine |= {child for child, parent in parents.items() if parent in mine}
    return sum(ticks.get(process, 0) for process in mine) / os.sysconf("SC_CLK_TCK")


def resident_bytes(process: int) -> int:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not _answers(url):
        if child.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-2000:]
            raise ProcessFailed(f"a server did not come up at {url}: {said}")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
