"""Measure the cost of traces in the quickstart's PPO with 1 task in 16 traced, in two ways.

`traces_calls`: the CPU time of every call of `fairlead.tracing` in every process, threads that send included,
added up within the first updates of a run, against the CPU time of its updates without traces. Other work of
the machine hardly changes the ratio.

`traces_cpu`, `traces_wall`: updates with traces against updates of the same run without. Its processes switch
their traces on and off between blocks of updates (see `traces_switch`). A block and the next one are a pair,
each variant is first in every other pair, and the result is the median of the ratios. That is all that traces
cost, but needs a quiet machine.

The policy hardly learns, so that every update has the same work. Spans go to a receiver in this process. Its
work does not count.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import quickstart
from benchmarks.result import Result, Settings
from fairlead.errors import ConfigError, ProcessFailed
from tests.trace_backend import Received, backend

_BLOCK = 6
"""Updates without a change."""
_PAIRS = 24
_ACCOUNTED = 8
"""Updates at the beginning whose calls are measured."""
_SETTLE_SECONDS = 0.4
"""After a switch: until every process has seen it, and sent the spans that waited."""
_POLL_SECONDS = 0.02
_EXTRA: Mapping[str, object] = {
    "ppo.learning_rate": 1e-7,
    "ppo.critic_learning_rate": 1e-7,
    "checkpoint.every_updates": _BLOCK,
    "observe.trace_one_in": 16,
}
AT_MOST = 1.02


@dataclass(frozen=True, slots=True)
class _Block:
    """Updates without a change."""

    cpu_seconds: float
    """CPU time per update, of all processes of the run."""
    seconds: float
    """Wall-clock time per update."""


_Pair = tuple[_Block, _Block]
"""A traced block, and a plain one beside it."""


def run(settings: Settings) -> dict[str, Result]:
    """Measure seconds of an update and CPU seconds per update."""
    try:
        import opentelemetry.exporter.otlp.proto.http  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(
            "benchmarks traces", got="no OpenTelemetry", allowed="pip install 'fairlead-rlhf[otel]'"
        ) from None
    source = quickstart.ensure(settings.source)
    pairs = 1 if settings.quick else _PAIRS
    block = 2 if settings.quick else _BLOCK
    accounted = 2 if settings.quick else _ACCOUNTED
    extra: dict[str, object] = {**_EXTRA, "ppo.updates": accounted + 2 * pairs * block + 1}
    if settings.quick:
        extra |= {"ppo.batch_size": 8, "ppo.mini_batch_size": 8}
    with tempfile.TemporaryDirectory() as name, backend(200) as (address, received):
        folder = Path(name)
        overrides = quickstart.settings(source, folder, "run", extra | {"observe.otlp_endpoint": address})
        with _Run(overrides, folder / "switch") as ppo:
            calls_seconds = ppo.account(accounted) / accounted
            spans = _num_spans(received) / accounted
            print(f"{spans:.0f} spans of {calls_seconds * 1e6 / spans:.0f} us per update", file=sys.stderr)
            found = list(_until(ppo.pairs(accounted, pairs, block), settings.minutes))
    what = "updates of the same run without traces"
    plain = statistics.median(plain.cpu_seconds for _, plain in found)
    return {
        "traces_calls": Result(plain + calls_seconds, "CPU-s/update", plain, what, at_most=AT_MOST),
        "traces_cpu": _result("CPU-s/update", what, [(t.cpu_seconds, p.cpu_seconds) for t, p in found]),
        "traces_wall": _result("s/update", what, [(t.seconds, p.seconds) for t, p in found]),
    }


def _until(pairs: Iterator[_Pair], minutes: float | None) -> Iterator[_Pair]:
    """Yield and print pairs, for a limited time."""
    begun = time.monotonic()
    for traced, plain in pairs:
        print(
            f"CPU-s/update {traced.cpu_seconds:.3f} / {plain.cpu_seconds:.3f}, "
            f"s/update {traced.seconds:.2f} / {plain.seconds:.2f}",
            file=sys.stderr,
            flush=True,
        )
        yield traced, plain
        if minutes is not None and time.monotonic() - begun > 60 * minutes:
            return


def _result(unit: str, what: str, pairs: Sequence[tuple[float, float]]) -> Result:
    """Return the median ratio of (traced, plain), and print its interval."""
    ratios = sorted(traced / plain for traced, plain in pairs)
    skipped = _outside(len(ratios))
    low, high = (ratios[skipped], ratios[-1 - skipped]) if skipped >= 0 else (math.nan, math.nan)
    ratio = statistics.median(ratios)
    print(
        f"{unit}: ratio {ratio:.4f}, 95% interval {low:.4f} to {high:.4f}, {len(ratios)} pairs: "
        + " ".join(f"{each:.3f}" for each in ratios),
        file=sys.stderr,
    )
    plain = statistics.median(plain for _, plain in pairs)
    return Result(plain * ratio, unit, plain, what, at_most=AT_MOST)


def _outside(count: int) -> int:
    """Return how many of `count` sorted values lie below, and as many above, a 95% interval of their median.

    By the sign test, which assumes nothing about their distribution; -1 if there are too few values.
    """
    below = -1
    share = 0.0
    while (share := share + math.comb(count, below + 1) / 2**count) <= 0.025:
        below += 1
    return below


class _Run:
    """A run of PPO whose traces can be switched; a context manager."""

    def __init__(self, overrides: dict[str, str], switch: Path) -> None:
        self._overrides = overrides
        self._metrics = quickstart.config(overrides).folder.metrics("ppo")
        self._switch = switch
        self._spent: dict[tuple[int, float], float] = {}

    def __enter__(self) -> _Run:
        self._switch.touch()
        environment = os.environ | {
            "SWITCH_FILE": str(self._switch),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).with_name("traces_switch")), str(Path(__file__).parents[1])]
            ),
        }
        command = [sys.executable, "-m", "fairlead.cli", "ppo", str(quickstart.CONFIG)]
        self._process = subprocess.Popen(
            [*command, *quickstart.flags(self._overrides)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._root = psutil.Process(self._process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def account(self, updates: int) -> float:
        """Return the CPU seconds of calls of `fairlead.tracing` in the first updates. Traces are off then."""
        self._wait(updates)
        self._turn(is_on=False)
        seconds = 0.0
        for file in self._switch.parent.glob(f"{self._switch.name}-*"):
            process = psutil.Process(int(file.name.rpartition("-")[2])).cmdline()[2]
            rows = [line.split() for line in file.read_text().splitlines()]
            said = [f"{name} {1e3 * float(spent):.1f} ({calls})" for name, calls, spent in rows if int(calls)]
            print(f"{process}, ms (calls): {', '.join(said)}", file=sys.stderr)
            seconds += sum(float(spent) for _, _, spent in rows)
        return seconds

    def pairs(self, update: int, count: int, block: int) -> Iterator[_Pair]:
        """Yield a traced and a plain block, `count` times.

        Args:
            update: at which the first begins.
            count: number of pairs.
            block: updates of a block.
        """
        order = [(True, False) if number % 2 == 0 else (False, True) for number in range(count)]
        variants = [*itertools.chain.from_iterable(order), False]
        ends = [self._turn(is_on=variants[0])]
        for number, is_on in enumerate(variants[1:], start=1):
            self._wait(update + number * block)
            ends.append(self._turn(is_on=is_on))
            if number % 2 == 0:
                blocks = [
                    _Block((after[0] - before[0]) / block, (after[1] - before[1]) / block)
                    for before, after in itertools.pairwise(ends[-3:])
                ]
                yield (blocks[0], blocks[1]) if variants[number - 2] else (blocks[1], blocks[0])

    def _turn(self, *, is_on: bool) -> tuple[float, float]:
        """Set the switch, and return CPU seconds and time of when every process has seen it."""
        if is_on:
            self._switch.touch()
        else:
            self._switch.unlink(missing_ok=True)
        time.sleep(_SETTLE_SECONDS)  # without a change too: a block is that much later than its updates
        return self._cpu_seconds(), time.monotonic()

    def _cpu_seconds(self) -> float:
        for process in (self._root, *self._root.children(recursive=True)):
            try:
                spent = process.cpu_times()
                self._spent[process.pid, process.create_time()] = spent.user + spent.system
            except psutil.Error:
                continue
        return sum(self._spent.values())

    def _wait(self, updates: int) -> None:
        """Wait until that number of updates have ended.

        Raises:
            ProcessFailed: if the run ends before.
        """
        while not self._metrics.exists() or self._metrics.read_bytes().count(b"\n") < updates:
            if self._process.poll() is not None:
                raise ProcessFailed(f"fairlead ppo ended: {self._process.communicate()[1][-2000:]}")
            time.sleep(_POLL_SECONDS)


def _num_spans(received: Sequence[Received]) -> int:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    requests = (ExportTraceServiceRequest.FromString(body) for _, _, body in received)
    resources = itertools.chain.from_iterable(request.resource_spans for request in requests)
    scopes = itertools.chain.from_iterable(resource.scope_spans for resource in resources)
    return sum(len(scope.spans) for scope in scopes)
