"""Measure the cost of the services: the quickstart's PPO through them, against a plain loop in one process.

Both sides train the same models on the same tasks with the same settings, and take turns. Ours is `fairlead
ppo`: Redis, gRPC, weight store, ledger, checkpoints, guards, five processes. The baseline is `one_process`:
only the arithmetic. Start-up is excluded on both sides: time runs from the end of the first update to the end
of the last.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import quickstart
from benchmarks.quickstart import Measured
from benchmarks.result import Result, Settings
from fairlead.config.saving import save
from fairlead.errors import ProcessFailed

UPDATES = 12
AT_MOST = 1.6
TOLERANCE = 0.05
"""Tolerance of the first batch's mean score; one token sampled differently by rounding moves it by 0.01."""


def run(settings: Settings) -> dict[str, Result]:
    """Measure wall-clock and CPU seconds per update."""
    source = quickstart.ensure(settings.source)
    extra: dict[str, object] = {"ppo.updates": 2 if settings.quick else UPDATES}
    if settings.quick:
        extra |= {"ppo.batch_size": 8, "ppo.mini_batch_size": 8}
    ours, loops = list[Measured](), list[Measured]()
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(settings.rounds(3)):
            overrides = quickstart.settings(source, Path(folder), f"turn-{turn}", extra)
            ours.append(quickstart.ppo(overrides))
            loops.append(_loop(overrides, Path(folder) / f"loop-{turn}.toml"))
            gap = abs(ours[-1].first_reward - loops[-1].first_reward)
            if gap > TOLERANCE:
                raise AssertionError(f"the first batches score {gap:g} apart: not the same PPO")
    _print(ours)
    what = "the same PPO as a loop in one process"
    return {
        f"services_{name}": Result(_median(ours, field), unit, _median(loops, field), what, at_most=limit)
        for name, field, unit, limit in (
            ("wall", "seconds", "s/update", AT_MOST),
            ("cpu", "cpu_seconds", "CPU-s/update", None),
        )
    }


def _loop(overrides: dict[str, str], file: Path) -> Measured:
    save(quickstart.config(overrides), file)
    command = [sys.executable, "-m", "benchmarks.one_process", "--config", str(file)]
    begun = time.time()
    usage, said, code = quickstart.watched(command, {**os.environ, "PYTHONPATH": str(Path.cwd())})
    if code:
        raise ProcessFailed(f"the loop ended with exit code {code}: {said[-2000:]}")
    return quickstart.measured(said.splitlines(), usage, begun=begun)


def _median(runs: list[Measured], field: str) -> float:
    return float(statistics.median(getattr(run, field) for run in runs))


def _print(runs: list[Measured]) -> None:
    """Print the CPU time of each process in the last run."""
    parts = sorted(runs[-1].by_command.items(), key=lambda item: -item[1])
    print("CPU-s/update:", ", ".join(f"{name} {cpu:.3f}" for name, cpu in parts), file=sys.stderr)
