"""How long a run stands still when a process is killed: `python -m benchmarks.recovery --kills 10`.

One synchronous run of tiny models on this machine, one replica of everything, SIGKILL of one process after
the other. Recovery ends with the first rollout trained on that was begun after the kill. What of it was the
start of the new process (imports, model, until it says ready) is told apart. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
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

from benchmarks import tiny_models, tiny_run
from benchmarks.tiny_run import step
from fairlead.config import RunFolder
from fairlead.local import record, table

PROCESSES = ("policy-0", "reward-0", "reference-0", "rollout-worker-0", "trainer", "valkey")

_SETTINGS = {
    "ppo.updates": 1_000_000,
    "local.max_restarts": 100_000,
    "local.backoff_seconds": 0.005,
}
_PATIENCE_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """One kill."""

    start_seconds: float
    """From the start of the new process until it said that it is ready."""
    total_seconds: float
    """From the kill to the first rollout trained on that was begun after it."""


def measure(folder: RunFolder, name: str) -> Recovery:
    """Kills a process of a run that works, and waits until the run works again."""
    before, done = table.read(folder.processes)[name], step(folder)
    incarnation = max((line["incarnation"] for line in _trained(folder)), default=0)
    killed = time.time()
    os.kill(before, signal.SIGKILL)
    _until(lambda: table.read(folder.processes).get(name, before) != before)
    ready = _until(lambda: _is_ready(folder, name))
    started = next(p.started for p in _processes(folder) if p.name == name)

    def first() -> float:
        # A batch that was complete when the process died proves nothing.
        return min(
            (
                line["time"]
                for line in _trained(folder)
                if line["time"] > killed
                and (line["incarnation"] > incarnation or (name != "trainer" and line["update"] > done))
            ),
            default=0.0,
        )

    _until(lambda: first() > 0)
    return Recovery(ready - started, first() - killed)


def _until(condition: Callable[[], object]) -> float:
    """Waits; returns the Unix time at which it held."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the run does not recover")
        time.sleep(0.01)
    return time.time()


def _processes(folder: RunFolder) -> Sequence[record.ProcessRecord]:
    found = record.read(folder.supervisor)
    return found.processes if found else ()


def _is_ready(folder: RunFolder, name: str) -> bool:
    return any(process.name == name and process.state == "ready" for process in _processes(folder))


def _trained(folder: RunFolder) -> list[dict[str, float]]:
    """The last lines of the journal."""
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
    """Runs and prints."""
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
        file = tiny_run.write(folder, name="recovery", prompts=prompts, settings=_SETTINGS)
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
                    found.append(measure(place, process))
                print(_row(process, found), flush=True)
        finally:
            run.send_signal(signal.SIGINT)
            run.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
