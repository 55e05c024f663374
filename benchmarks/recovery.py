"""Measure how long a run stalls when a process is killed: `python -m benchmarks.recovery --kills 10`.

One synchronous run of tiny models with one replica of every service; SIGKILL of one process after the other.
Recovery ends with the first trained rollout that was started after the kill; for the weights service, with
one made by weights that were published after it; for the gateway, with the first score. The start of the new
process (imports, model, until it reports ready) is listed separately. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import tiny_models, tiny_run
from benchmarks.tiny_run import step
from fairlead.config import RunFolder
from fairlead.local.addresses import Ports
from fairlead.local.run_files import ProcessRecord, read_pids, read_record

_GATEWAY, _WEIGHTS = "gateway-0", "weights-0"
PROCESSES = (
    *("policy-0", "reward-0", "reference-0", "rollout-worker-0", "trainer", "valkey"),
    *(_WEIGHTS, _GATEWAY),
)

_SETTINGS = {
    "ppo.updates": 1_000_000,
    "local.max_restarts": 100_000,
    "local.backoff_seconds": 0.005,
}
_LIMIT_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """One kill."""

    start_seconds: float
    """From the start of the new process until it reports ready."""
    total_seconds: float
    """From the kill to the event that proves recovery."""


def measure(folder: RunFolder, name: str, *, gateway: str) -> Recovery:
    """Kill a process of an active run and wait until the run recovers; `gateway` is `host:port`."""
    before, done = read_pids(folder.processes)[name], step(folder)
    incarnation = max((line["incarnation"] for line in _trained(folder)), default=0)
    killed = time.time()
    os.kill(before, signal.SIGKILL)
    _until(lambda: read_pids(folder.processes).get(name, before) != before)
    ready = _until(lambda: _is_ready(folder, name))
    started = next(p.started for p in _processes(folder) if p.name == name)

    if name == _GATEWAY:
        return Recovery(ready - started, _until(lambda: _scores(gateway)) - killed)

    def first() -> float:
        later = [line for line in _trained(folder) if line["time"] > killed]
        if name == _WEIGHTS:
            proofs = [line for line in later if max(map(_update, line["versions"])) > done]
        else:
            # A batch that was complete when the process died does not prove recovery.
            proofs = [
                line
                for line in later
                if line["incarnation"] > incarnation or (name != "trainer" and line["update"] > done)
            ]
        return min((float(line["time"]) for line in proofs), default=0.0)

    _until(lambda: first() > 0)
    return Recovery(ready - started, first() - killed)


def _update(version: str) -> int:
    return int(version.partition("-")[2])


def _scores(gateway: str) -> bool:
    """Return whether a gateway returns a score."""
    connection = http.client.HTTPConnection(gateway, timeout=5)
    try:
        body = json.dumps({"prompt": "w3", "responses": ["w4"]})
        connection.request("POST", "/v1/rewards", body, {"content-type": "application/json"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _until(condition: Callable[[], object]) -> float:
    """Wait for a condition; return the Unix time at which it held."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the run does not recover")
        time.sleep(0.01)
    return time.time()


def _processes(folder: RunFolder) -> Sequence[ProcessRecord]:
    found = read_record(folder.supervisor)
    return found.processes if found else ()


def _is_ready(folder: RunFolder, name: str) -> bool:
    return any(process.name == name and process.state == "ready" for process in _processes(folder))


def _trained(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the last lines of the journal."""
    try:
        with folder.ledger.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 200_000))
            texts = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    lines = []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line.get("event") == "trained":
            lines.append(line)
    return lines


def _row(name: str, found: Sequence[Recovery]) -> str:
    start, total, beyond = (
        statistics.median(values)
        for values in (
            [one.start_seconds for one in found],
            [one.total_seconds for one in found],
            [one.total_seconds - one.start_seconds for one in found],
        )
    )
    worst = max(one.total_seconds for one in found)
    return f"| {name} | {len(found)} | {total:.1f} | {worst:.1f} | {start:.1f} | {beyond:.1f} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.recovery", description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="of each process")
    parser.add_argument("--processes", nargs="+", default=PROCESSES, choices=PROCESSES)
    options = parser.parse_args(argv)
    print("| killed | times | recovery, median s | longest | start to ready | beyond that |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = tiny_models.config(width=32, layers=2, vocabulary=128, positions=128)
        tiny_models.save(folder / "policy", shape, reward=False)
        tiny_models.save(folder / "reward", shape, reward=True)
        prompts = (f"w{n % 100 + 3} w{n * 7 % 100 + 3}" for n in range(64))
        gateway = f"127.0.0.1:{Ports().free(_GATEWAY)}"
        settings: dict[str, object] = dict(_SETTINGS)
        if _WEIGHTS in options.processes:
            settings["weights.transport"] = "grpc"
        if _GATEWAY in options.processes:
            settings |= {"gateway.replicas": 1, "gateway.addresses": [gateway]}
        file = tiny_run.write(folder, name="recovery", prompts=prompts, settings=settings)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        run = subprocess.Popen(tiny_run.command(file), cwd=folder, **quiet)  # type: ignore[call-overload]
        try:
            place = RunFolder(folder / "runs" / "recovery")
            _until(lambda: step(place) >= 3)
            for process in options.processes:
                found = []
                for _ in range(options.kills):
                    before = step(place)
                    _until(lambda before=before: step(place) > before)  # type: ignore[misc]
                    found.append(measure(place, process, gateway=gateway))
                print(_row(process, found), flush=True)
        finally:
            run.send_signal(signal.SIGTERM)
            run.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
