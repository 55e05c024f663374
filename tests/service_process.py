"""Start model services as real processes on free ports, for tests, and kill them at the end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fairlead.local.addresses import LOOPBACK, Ports
from tests.tiny import tiny_causal_lm, tiny_reward_model


@dataclass
class Process:
    """One service process and its addresses."""

    popen: subprocess.Popen[bytes]
    address: str
    metrics: str
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.metrics}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""
        except OSError:
            return 0, ""

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.popen.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def wait_for(self, path: str) -> None:
        self.until(lambda: self.get(path)[0] == 200)

    def stop(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(30)


def free_address() -> str:
    """Return an address whose port the system does not give to outgoing connections."""
    return f"{LOOPBACK}:{Ports().free('a process of a test')}"


class Starter:
    """Starts service processes; `stop` kills those that still run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Process] = []

    def __call__(self, name: str, path: Path | str | None, **settings: object) -> Process:
        address, metrics = free_address(), free_address()
        log = self.folder / f"{name}{len(self.started)}.log"
        values: dict[str, object] = {f"{name}.bind": address}
        if path is not None:
            values[f"{name}.path"] = path
        values |= {"observe.metrics_port": metrics.split(":")[1]} | settings
        flags = [flag for key, value in values.items() for flag in ("--set", f"{key}={value}")]
        with log.open("wb") as output:
            popen = subprocess.Popen([sys.executable, "-m", f"services.{name}", *flags], stderr=output)
        self.started.append(Process(popen, address, metrics, log))
        return self.started[-1]

    def stop(self) -> None:
        for process in self.started:
            process.popen.kill()
            process.popen.wait()


@contextmanager
def reward_and_policy(folder: Path, *, ready_seconds: float) -> Iterator[dict[str, str]]:
    """Yield the addresses of a reward and a policy service with tiny models."""
    start = Starter(folder)
    try:
        reward = start("reward", tiny_reward_model(folder / "reward"))
        settings = {"policy.serve_initial": "true"}
        policy = start("policy", tiny_causal_lm(folder / "policy", seed=1), **settings)
        for process in (reward, policy):
            process.until(lambda ready=process: ready.get("/readyz")[0] == 200, seconds=ready_seconds)
        yield {"reward": reward.address, "policy": policy.address}
    finally:
        start.stop()
