"""Measure the throughput of queue and workers on this machine: services only wait, everything else is real.

Four results. *Growth*: workers are added, each with a few tasks, and throughput is compared with a multiple
of one worker's. *Limit*: a thousand tasks in flight with services whose waits allow nearly a thousand
rollouts per second; CPU time by process shows the bottleneck. *Most*: three times as many, which uses both
cores fully. *Queue*: a thousand without any call, which leaves the cost of Redis, worker and dispatcher per
rollout.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.result import Result, Settings
from benchmarks.scale.dispatcher import Dispatcher
from fairlead.config import RunConfig, load
from fairlead.config.saving import save
from fairlead.errors import ProcessFailed
from fairlead.local import valkey

TOKENS = 64
GENERATE_SECONDS = 1.0
SCORE_SECONDS = 0.05
WORKERS = (1, 2, 4, 8, 16, 32, 64)
TASKS_PER_WORKER = 8
"""Tasks of one worker while workers are added."""
IN_FLIGHT = 1_000
MOST_IN_FLIGHT = 3_000
AT_LEAST = 1_000.0
"""Rollouts per second that two cores must reach."""
FEW_WORKERS = 2
"""Workers that hold a thousand tasks together: more would only share the same cores."""
_READY_SECONDS = 120.0


@dataclass(slots=True)
class Fleet:
    """The processes of one measurement, by role."""

    folder: Path
    url: str
    members: dict[str, list[psutil.Process]] = field(default_factory=dict)
    started: list[psutil.Popen] = field(default_factory=list)
    """Processes that `stop` ends."""

    def start(self, name: str, *arguments: str) -> psutil.Popen:
        """Start `python -m …`; the caller may read its output."""
        environment = {**os.environ, "FAIRLEAD_QUEUE__REDIS_URL": self.url, "PYTHONPATH": str(Path.cwd())}
        log = (self.folder / f"{name}.log").open("a")
        process = psutil.Popen(
            [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        log.close()
        self.members.setdefault(name, []).append(process)
        self.started.append(process)
        return process

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU seconds spent so far by role, including the dispatcher (this process)."""
        own = psutil.Process().cpu_times()
        found = {"dispatcher": own.user + own.system}
        for name, processes in self.members.items():
            times = [process.cpu_times() for process in processes]
            found[name] = sum(each.user + each.system for each in times)
        return found

    def stop(self) -> None:
        """Stop all processes."""
        for process in self.started:
            process.terminate()
        for process in self.started:
            try:
                process.wait(timeout=20)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


@dataclass(frozen=True, slots=True)
class Rate:
    """A measurement."""

    per_second: float
    """Settled rollouts per second."""
    cpu_ms: Mapping[str, float]
    """CPU milliseconds per rollout, by role."""


def run(settings: Settings) -> dict[str, Result]:
    """Measure rollouts per second and the cost of a rollout."""
    seconds = 2.0 if settings.quick else 12.0
    counts = (1, 2) if settings.quick else WORKERS
    in_flight = 50 if settings.quick else IN_FLIGHT
    grown = _growth(counts, seconds=seconds)
    whole = _limit(in_flight, seconds=seconds)
    most = _limit(in_flight if settings.quick else MOST_IN_FLIGHT, seconds=seconds)
    queue = _queue_only(in_flight, seconds=seconds)
    _print(grown, {"limit": whole, "most": most, "queue only": queue})
    workers = counts[-1]
    ours = sum(cost for name, cost in whole.cpu_ms.items() if name != "services")
    return {
        "scale_workers": Result(
            grown[workers].per_second,
            "rollouts/s",
            workers * grown[1].per_second,
            f"{workers} times the rate of one worker; the ratio is 1 where throughput grows with workers",
        ),
        "scale_limit": Result(
            whole.per_second,
            "rollouts/s",
            in_flight / (GENERATE_SECONDS + SCORE_SECONDS),
            f"what the waits allow with {in_flight} tasks in flight",
        ),
        "scale_most": Result(
            most.per_second,
            "rollouts/s",
            AT_LEAST,
            "what is asked for",
            at_least=None if settings.quick else 1.0,
        ),
        "scale_queue_limit": Result(
            queue.per_second, "rollouts/s", in_flight / GENERATE_SECONDS, "the same without any call"
        ),
        "scale_queue_cost": Result(
            sum(queue.cpu_ms.values()),
            "CPU-ms/rollout",
            ours,
            "a rollout's whole cost but for the services: calls and queue",
        ),
    }


def _growth(counts: Sequence[int], *, seconds: float) -> dict[int, Rate]:
    found: dict[int, Rate] = {}
    with _fleet() as (fleet, config):
        address = _services(fleet)
        batch = TASKS_PER_WORKER
        dispatcher = _dispatcher(config, fleet, in_flight=2 * TASKS_PER_WORKER * counts[-1], batch=batch)
        for count in counts:
            while len(fleet.members.get("workers", ())) < count:
                fleet.start(
                    "workers", "services.rollout_worker", *_worker(config, fleet, address, TASKS_PER_WORKER)
                )
            dispatcher.run(_settling(count))
            found[count] = _measure(fleet, dispatcher, seconds)
        dispatcher.close()
    return found


def _limit(in_flight: int, *, seconds: float) -> Rate:
    with _fleet() as (fleet, config):
        address = _services(fleet)
        for _ in range(FEW_WORKERS):
            capacity = in_flight // FEW_WORKERS
            fleet.start("workers", "services.rollout_worker", *_worker(config, fleet, address, capacity))
        return _without_calls(fleet, config, in_flight, seconds)


def _queue_only(in_flight: int, *, seconds: float) -> Rate:
    with _fleet() as (fleet, config):
        for _ in range(FEW_WORKERS):
            flags = ("--seconds", str(GENERATE_SECONDS), "--tokens", str(TOKENS))
            file = _file(config, fleet, "127.0.0.1:1", in_flight // FEW_WORKERS)
            fleet.start("workers", "benchmarks.scale.queue_worker", "--config", str(file), *flags)
        return _without_calls(fleet, config, in_flight, seconds)


def _without_calls(fleet: Fleet, config: RunConfig, in_flight: int, seconds: float) -> Rate:
    dispatcher = _dispatcher(config, fleet, in_flight=in_flight, batch=max(1, in_flight // 10))
    dispatcher.run(_settling(FEW_WORKERS))
    rate = _measure(fleet, dispatcher, seconds)
    dispatcher.close()
    return rate


def _settling(count: int) -> float:
    """Return how long new workers need until they work: each needs a second of CPU on two cores."""
    return 4.0 + count


def _measure(fleet: Fleet, dispatcher: Dispatcher, seconds: float) -> Rate:
    before = fleet.cpu_seconds()
    settled, took = dispatcher.run(seconds)
    after = fleet.cpu_seconds()
    for name, processes in fleet.members.items():
        if not all(map(_runs, processes)):
            raise ProcessFailed(f"one of the {name} has ended: {(fleet.folder / f'{name}.log').read_text()}")
    costs = {name: 1000 * (after[name] - before.get(name, 0.0)) / settled for name in after}
    return Rate(settled / took, costs)


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@contextlib.contextmanager
def _fleet() -> Iterator[tuple[Fleet, RunConfig]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = valkey.prepare(folder / "valkey")
        with valkey.start(server, ready_seconds=20.0) as process:
            fleet = Fleet(folder, server.url)
            fleet.members["valkey"] = [psutil.Process(process.pid)]
            config = load(None, overrides={"name": "scale", "runs": str(folder / "runs")})
            try:
                yield fleet, config
            finally:
                fleet.stop()


def _services(fleet: Fleet) -> str:
    process = fleet.start(
        "services",
        "benchmarks.scale.waiting_services",
        *("--generate-seconds", str(GENERATE_SECONDS)),
        *("--score-seconds", str(SCORE_SECONDS), "--tokens", str(TOKENS)),
    )
    assert process.stdout is not None
    address: str = process.stdout.readline().strip()
    if not address:
        raise ProcessFailed(f"the waiting services: {(fleet.folder / 'services.log').read_text()}")
    return address


def _worker(config: RunConfig, fleet: Fleet, address: str, tasks_per_worker: int) -> tuple[str, str]:
    return "--config", str(_file(config, fleet, address, tasks_per_worker))


def _file(config: RunConfig, fleet: Fleet, address: str, tasks_per_worker: int) -> Path:
    overrides: dict[str, object] = {
        "name": config.name,
        "runs": str(config.runs),
        "rollout_worker.max_in_flight": tasks_per_worker,
        "observe.metrics_port": -1,
        **{f"{service}.addresses": [address] for service in ("policy", "reward", "reference")},
    }
    file = fleet.folder / "run.toml"
    save(load(None, overrides=overrides), file)
    return file


def _dispatcher(config: RunConfig, fleet: Fleet, *, in_flight: int, batch: int) -> Dispatcher:
    section = config.queue.model_copy(update={"redis_url": fleet.url})
    return Dispatcher(section, run=config.name, folder=config.folder, in_flight=in_flight, batch=batch)


def _print(grown: Mapping[int, Rate], others: Mapping[str, Rate]) -> None:
    print("workers | rollouts/s | CPU-ms a rollout", file=sys.stderr)
    for what, rate in [*((str(count), rate) for count, rate in grown.items()), *others.items()]:
        print(f"{what} | {rate.per_second:.1f} | {_costs(rate)}", file=sys.stderr)


def _costs(rate: Rate) -> str:
    parts = sorted(rate.cpu_ms.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {cost:.2f}" for name, cost in parts)
