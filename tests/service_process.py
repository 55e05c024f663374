"""Start model services as real processes on free ports, for tests, and kill them at the end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

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


class SharedServices:
    """Services with tiny models, each of which is started when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._start = Starter(folder)
        self._running: dict[str, Process] = {}
        self.models = {
            "reward": tiny_reward_model(folder / "reward"),
            "policy": tiny_causal_lm(folder / "policy", seed=1),
        }
        """The folders of their models; policy and reference have the same."""
        self.models["reference"] = self.models["policy"]

    def ready(self, *names: str) -> dict[str, Process]:
        """Return `policy`, `reward` or `reference` services by name once they are ready."""
        settings = {
            "reward": {"reward.calibration_temperature": 2.0},
            "policy": {"policy.serve_initial": "true"},
        }
        for name in names:
            if name not in self._running:
                self._running[name] = self._start(name, self.models[name], **settings.get(name, {}))
        for name in names:
            # A busy machine may take minutes to start processes that import torch.
            ready = self._running[name]
            ready.until(lambda ready=ready: ready.get("/readyz")[0] == 200, seconds=240)
        return {name: self._running[name] for name in names}

    def addresses(self, *names: str) -> dict[str, str]:
        """Return the addresses of services by name once they are ready."""
        return {name: process.address for name, process in self.ready(*names).items()}

    def stop(self) -> None:
        """End all services."""
        self._start.stop()


def own_processes() -> set[psutil.Process]:
    """Return the Python processes that this one and its children have started; databases do not count."""
    found = psutil.Process().children(recursive=True)
    return {process for process in found if process.name().startswith("python")}
