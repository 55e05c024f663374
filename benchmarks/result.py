"""What a benchmark is told and what it says: a figure, what it was compared with, and the ratio of both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

OUT = Path("benchmarks/out")
"""Where benchmarks leave what they make; ignored by git."""
QUICKSTART = OUT / "quickstart"
"""Where the quickstart is that long benchmarks stand on, if nobody names another."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure."""

    device: torch.device
    """Where models of the short benchmarks compute."""
    quick: bool = False
    """Tiny sizes, once each: shows that a benchmark works; its figures mean nothing."""
    source: Path = QUICKSTART
    """Folder of a finished quickstart, for the benchmarks that need one."""

    def rounds(self, wanted: int) -> int:
        """Turns of each variant."""
        return 1 if self.quick else wanted


@dataclass(frozen=True, slots=True)
class Result:
    """A figure beside its baseline, measured in the same run."""

    value: float
    """Ours."""
    unit: str
    """Its unit."""
    baseline: float
    """What it is compared with, in the same unit."""
    what: str
    """What the baseline is."""
    at_least: float | None = None
    """The ratio that must be reached."""
    at_most: float | None = None
    """The ratio that must not be exceeded."""

    @property
    def ratio(self) -> float:
        """Value ÷ baseline."""
        return self.value / self.baseline if self.baseline else float("nan")

    @property
    def limit(self) -> str:
        """The bound of the ratio and whether it holds; empty without one."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}: {'held' if self.ratio >= self.at_least else 'MISSED'}"
        if self.at_most is not None:
            return f"≤ {self.at_most:g}: {'held' if self.ratio <= self.at_most else 'MISSED'}"
        return ""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a variant took, medians."""

    seconds: float
    """On the clock."""
    cpu_seconds: float
    """Of every thread of this process."""


def interleaved(variants: Mapping[str, Callable[[], object]], *, rounds: int = 5) -> dict[str, Spent]:
    """Median times of each variant; they take turns, so that drift of the machine hits all alike.

    Every variant runs once before it counts.
    """
    for run in variants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            cpu[name].append(time.process_time() - cpu_start)
            seconds[name].append(time.perf_counter() - start)
    return {name: Spent(statistics.median(seconds[name]), statistics.median(cpu[name])) for name in variants}


def rates(
    name: str, count: float, unit: str, ours: Spent, other: Spent, what: str, *, at_least: float | None = None
) -> dict[str, Result]:
    """Two results, `name` by the clock and `name_cpu` by CPU time, which other work disturbs less.

    Args:
        name: of the first.
        count: what was done in that time, by both.
        unit: of what was done.
        ours: our time.
        other: the baseline's.
        what: what the baseline is.
        at_least: the limit, by the clock.
    """
    by_clock = Result(count / ours.seconds, f"{unit}/s", count / other.seconds, what, at_least=at_least)
    by_cpu = Result(count / ours.cpu_seconds, f"{unit}/CPU-s", count / other.cpu_seconds, what)
    return {name: by_clock, f"{name}_cpu": by_cpu}
