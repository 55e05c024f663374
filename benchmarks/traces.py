"""Measure the cost of traces: the quickstart's PPO with 1 task in 16 traced, against the same without traces.

Both train the same models on the same tasks through the same services, and take turns. Spans go to a receiver
in this process, whose work does not count. The first update of each run is left out.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import quickstart
from benchmarks.result import Result, Settings
from fairlead.errors import ConfigError
from fairlead.tracing import stored

UPDATES = 12
TURNS = 3
AT_MOST = 1.02


@dataclass(frozen=True, slots=True)
class _Run:
    """A run of PPO."""

    seconds: list[float]
    """Of each update but the first."""
    cpu_seconds: float
    """CPU time per update, of all processes."""


def run(settings: Settings) -> dict[str, Result]:
    """Measure seconds of an update and CPU seconds per update."""
    try:
        from fairlead.tracing.sink import receiving
    except ModuleNotFoundError:
        raise ConfigError(
            "benchmarks traces", got="no OpenTelemetry", allowed="pip install 'fairlead-rlhf[otel]'"
        ) from None
    source = quickstart.ensure(settings.source)
    extra: dict[str, object] = {"ppo.updates": 2 if settings.quick else UPDATES}
    if settings.quick:
        extra |= {"ppo.batch_size": 8, "ppo.mini_batch_size": 8}
    traced, plain = list[_Run](), list[_Run]()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "traces.jsonl"
        with receiving(file, host="127.0.0.1", port=0) as address:
            on = {"observe.otlp_endpoint": address, "observe.trace_one_in": 16}
            for turn in range(settings.rounds(TURNS)):
                # Each variant is first in every other turn.
                for is_traced in (True, False) if turn % 2 == 0 else (False, True):
                    name = f"{'traced' if is_traced else 'plain'}-{turn}"
                    more = extra | on if is_traced else extra
                    found = _ppo(quickstart.settings(source, Path(folder), name, more))
                    (traced if is_traced else plain).append(found)
        spans = len(stored.read(file))
    updates = sum(len(each.seconds) + 1 for each in traced)
    print(f"spans: {spans / updates:.1f} per update", file=sys.stderr)
    what = "the same PPO without traces"
    return {
        "traces_wall": Result(_median(traced), "s/update", _median(plain), what, at_most=AT_MOST),
        "traces_cpu": Result(
            statistics.median(each.cpu_seconds for each in traced),
            "CPU-s/update",
            statistics.median(each.cpu_seconds for each in plain),
            what,
            at_most=AT_MOST,
        ),
    }


def _ppo(overrides: dict[str, str]) -> _Run:
    measured = quickstart.ppo(overrides)
    lines = quickstart.config(overrides).folder.metrics("ppo").read_text().splitlines()
    return _Run([json.loads(line)["seconds"] for line in lines[1:]], measured.cpu_seconds)


def _median(runs: list[_Run]) -> float:
    return statistics.median(itertools.chain.from_iterable(each.seconds for each in runs))
