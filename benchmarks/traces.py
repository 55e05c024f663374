"""Measure the cost of traces: the quickstart's PPO with 1 task in 16 traced, against the same without traces.

Both train the same models on the same tasks through the same services, and take turns. Spans go to a receiver
in this process, whose work does not count. The first update of each run is left out.

On a machine with other work the two differ by more than traces cost. `traces_computed` does not depend on it:
the CPU time of what an update records, measured in a loop, added to that of an update without traces.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import quickstart
from benchmarks.result import Result, Settings
from fairlead import tracing
from fairlead.config.infrastructure import ObserveSection
from fairlead.errors import ConfigError
from fairlead.tracing import stored

UPDATES = 12
_LOOPS = 500
_SPANS_OF_TASK = 7
_PROCESSES = 5
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
        import opentelemetry.exporter.otlp.proto.http  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(
            "benchmarks traces", got="no OpenTelemetry", allowed="pip install 'fairlead-rlhf[otel]'"
        ) from None
    from fairlead.tracing.export import EVERY_SECONDS
    from fairlead.tracing.sink import receiving

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
    for name, runs in (("traced", traced), ("plain", plain)):
        print(f"CPU-s/update, {name}:", *(f"{each.cpu_seconds:.3f}" for each in runs), file=sys.stderr)
    what = "the same PPO without traces"
    plain_cpu = statistics.median(each.cpu_seconds for each in plain)
    tasks = quickstart.config(quickstart.settings(source, source, "tasks", extra)).ppo.tasks_per_update
    exports = _PROCESSES * max(1.0, _median(plain) / EVERY_SECONDS)
    cost = _cpu_of_traces(spans / updates, tasks, exports)
    return {
        "traces_computed": Result(plain_cpu + cost, "CPU-s/update", plain_cpu, what, at_most=AT_MOST),
        "traces_wall": Result(_median(traced), "s/update", _median(plain), what, at_most=AT_MOST),
        "traces_cpu": Result(
            statistics.median(each.cpu_seconds for each in traced),
            "CPU-s/update",
            plain_cpu,
            what,
            at_most=AT_MOST,
        ),
    }


def _cpu_of_traces(spans: float, tasks: int, exports: float) -> float:
    """Return the CPU seconds of an update's traces.

    Args:
        spans: recorded and sent.
        tasks: not sampled.
        exports: requests to the backend.
    """
    command = [
        sys.executable,
        "-m",
        "fairlead.cli",
        "traces",
        "collect",
        "/dev/null",
        "--listen",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        address = receiver.stdout.readline().split()[3]
        try:
            observe = ObserveSection(otlp_endpoint=address, trace_one_in=1)
            begun = time.process_time()
            with tracing.start(observe, run="cost", process="worker", counter=lambda: lambda *_: None):
                for number in range(_LOOPS):
                    _task(number)
                recorded = (time.process_time() - begun) / _LOOPS / _SPANS_OF_TASK
            observe = ObserveSection(otlp_endpoint=address, trace_one_in=10**9)
            with tracing.start(observe, run="cost", process="worker", counter=lambda: lambda *_: None):
                begun = time.process_time()
                for number in range(_LOOPS):
                    _task(number)
                unsampled = (time.process_time() - begun) / _LOOPS
            export = _cpu_of_export(address)
        finally:
            receiver.terminate()
    print(
        f"CPU: {recorded * 1e6:.0f} us a span, {export * 1e3:.1f} ms an export, {unsampled * 1e6:.0f} us a "
        "task that is not sampled",
        file=sys.stderr,
    )
    return spans * recorded + tasks * unsampled + exports * export


def _cpu_of_export(address: str) -> float:
    """Return the CPU seconds of a request with no spans."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter(endpoint=f"{address}/v1/traces")
    exporter.export([])
    begun = time.process_time()
    for _ in range(_LOOPS):
        exporter.export([])
    return (time.process_time() - begun) / _LOOPS


def _task(number: int) -> None:
    """Do what the processes of a run do for one task."""
    with tracing.part_of(tracing.task_context(number, (1, 1))), tracing.span("claim") as claim:
        for name in ("generate", "reward", "reference", "finish"):
            with tracing.span(name, attributes={"fairlead.task": number}):
                tracing.exemplar()
        header = tracing.traceparent()
        tracing.serve("Generate", header, start_ns=time.time_ns(), attributes={"fairlead.task": number}).end()
        with tracing.joined("reward call", [claim], attributes={"fairlead.tasks": 1}):
            tracing.traceparent()


def _ppo(overrides: dict[str, str]) -> _Run:
    measured = quickstart.ppo(overrides)
    lines = quickstart.config(overrides).folder.metrics("ppo").read_text().splitlines()
    return _Run([json.loads(line)["seconds"] for line in lines[1:]], measured.cpu_seconds)


def _median(runs: list[_Run]) -> float:
    return statistics.median(itertools.chain.from_iterable(each.seconds for each in runs))
