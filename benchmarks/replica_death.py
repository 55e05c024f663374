"""Measure what the death of a policy replica costs the update that it happens in: `replica_death`.

A synchronous run of tiny models with two policy replicas and two workers. One replica is killed while it
generates; its requests go to the other. The update must take at most twice the time of an undisturbed one,
and the surviving replica must refuse few calls.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tiny_models, tiny_run
from benchmarks.result import Result, Settings
from fairlead.config import RunFolder
from fairlead.local.run_files import read_pids, read_record

_SETTINGS: Mapping[str, object] = {
    "ppo.updates": 1_000_000,
    "ppo.batch_size": 128,
    "ppo.mini_batch_size": 64,
    "sampling.max_new_tokens": 192,
    "policy.replicas": 2,
    "policy.max_slots": 32,
    "rollout_worker.replicas": 2,
    "local.backoff_seconds": 0.1,
    "checkpoint.every_updates": 1_000,
}
_BEFORE, _AFTER = 5, 3
_LIMIT_SECONDS = 300.0
_RUNNING, _HANDLED = "fairlead_policy_slots_used ", "grpc_server_handled_total{"


@dataclass(frozen=True, slots=True)
class Death:
    """The death of a replica, and its effect on the other."""

    update_seconds: float
    """The longest update after the kill."""
    normal_seconds: float
    """Median of the updates before it."""
    refusals: int
    """Calls that the surviving replica refused from the kill on."""
    calls: int
    """Calls that it answered from the kill on, refusals included."""


def run(settings: Settings) -> dict[str, Result]:
    """Kill a replica of a run once; return the cost of its update."""
    with tempfile.TemporaryDirectory() as name:
        death = measure(Path(name))
    return {
        "replica_death_update": Result(
            death.update_seconds, "s", death.normal_seconds, "median of the updates before it", at_most=2.0
        ),
        "replica_death_refusals": Result(
            death.refusals, "calls", death.calls, "all calls to the surviving replica"
        ),
    }


def measure(folder: Path) -> Death:
    """Start a run in an empty folder, kill a policy replica while it generates, and stop the run."""
    shape = tiny_models.config(width=64, layers=2, vocabulary=128, positions=256)
    tiny_models.save(folder / "policy", shape, reward=False)
    tiny_models.save(folder / "reward", shape, reward=True)
    prompts = (f"w{n % 100 + 3} w{n * 7 % 100 + 3}" for n in range(128))
    file = tiny_run.write(folder, name="death", prompts=prompts, settings=_SETTINGS)
    place = RunFolder(folder / "runs" / "death")
    with (folder / "console.log").open("wb") as console:
        process = subprocess.Popen(tiny_run.command(file), cwd=folder, stdout=console, stderr=console)
        try:
            return _kill(place)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _kill(folder: RunFolder) -> Death:
    _until(lambda: tiny_run.step(folder) >= _BEFORE)
    # Late in an update, with every slot in use: the death costs the most then.
    _until(lambda: _value(folder, "policy-0", _RUNNING) >= 32)
    calls, refusals = _handled(folder)
    killed, step = time.time(), tiny_run.step(folder)
    os.kill(read_pids(folder.processes)["policy-0"], signal.SIGKILL)
    _until(lambda: tiny_run.step(folder) >= step + _AFTER)
    after_calls, after_refusals = _handled(folder)
    ends = _ends(folder)
    seconds = {update: ends[update] - ends[update - 1] for update in ends if update - 1 in ends}
    return Death(
        update_seconds=max(seconds[update] for update in seconds if ends[update] > killed),
        normal_seconds=statistics.median(
            seconds[update] for update in seconds if update > 1 and ends[update] < killed
        ),
        refusals=after_refusals - refusals,
        calls=after_calls - calls,
    )


def _ends(folder: RunFolder) -> dict[int, float]:
    """Return when the outcomes of each update were written, in Unix time."""
    lines = [json.loads(line) for line in folder.ledger.read_text().splitlines()]
    return {line["update"]: float(line["time"]) for line in lines}


def _handled(folder: RunFolder) -> tuple[int, int]:
    """Return the calls of `Generate` that the second replica answered, and those that it refused."""
    lines = [
        line
        for line in _page(folder, "policy-1").splitlines()
        if line.startswith(_HANDLED) and 'grpc_method="Generate"' in line
    ]
    refused = [line for line in lines if 'grpc_code="RESOURCE_EXHAUSTED"' in line]
    calls, refusals = (sum(int(float(line.split()[-1])) for line in some) for some in (lines, refused))
    return calls, refusals


def _value(folder: RunFolder, process: str, name: str) -> float:
    lines = [line for line in _page(folder, process).splitlines() if line.startswith(name)]
    return float(lines[0].split()[-1]) if lines else 0.0


def _page(folder: RunFolder, name: str) -> str:
    record = read_record(folder.supervisor)
    assert record is not None, "the run has no supervisor"
    [address] = [process.metrics for process in record.processes if process.name == name]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        text: str = page.read().decode()
    return text


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the run does not get there")
        time.sleep(0.01)
