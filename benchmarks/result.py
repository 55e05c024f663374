"""Settings and results of benchmarks: a value, its baseline, and the ratio of both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

OUT = Path("benchmarks/out")
"""Folder for the files of benchmarks; ignored by git."""
QUICKSTART = OUT / "quickstart"
"""Default folder of the quickstart that long benchmarks use."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a measurement."""

    device: torch.device
    """Device of the short benchmarks."""
    quick: bool = False
    """Use tiny sizes, once each: shows that a benchmark works; its values are meaningless."""
    source: Path = QUICKSTART
    """Folder of a finished quickstart, for benchmarks that need one."""
    minutes: float | None = None
    """Time limit of benchmarks that have one; None for their own."""

    def rounds(self, wanted: int) -> int:
        """Turns of each variant."""
        return 1 if self.quick else wanted


@dataclass(frozen=True, slots=True)
class Result:
    """A value and its baseline, measured in the same run."""

    value: float
    """Our value."""
    unit: str
    """Its unit."""
    baseline: float
    """Value of the baseline, in the same unit."""
    what: str
    """Description of the baseline."""
    at_least: float | None = None
    """Lower limit of the ratio."""
    at_most: float | None = None
    """Upper limit of the ratio."""

    @property
    def ratio(self) -> float:
        """Value ÷ baseline."""
        return self.value / self.baseline if self.baseline else float("nan")

    @property
    def limit(self) -> str:
        """Return the limit of the ratio and whether it holds; empty if there is none."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}: {'held' if self.ratio >= self.at_least else 'MISSED'}"
        if self.at_most is not None:
            return f"≤ {self.at_most:g}: {'held' if self.ratio <= self.at_most else 'MISSED'}"
        return ""


@dataclass(frozen=True, slots=True)
class Spent:
    """Median times of a variant."""

    seconds: float
    """Wall-clock seconds."""
    cpu_seconds: float
    """CPU seconds of every thread of this process."""


def interleaved(variants: Mapping[str, Callable[[], object]], *, rounds: int = 5) -> dict[str, Spent]:
    """Return median times of each variant; they take turns, so that drift of the machine affects all equally.

    Every variant runs once as a warm-up.
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
    """Return two results, `name` by wall-clock time and `name_cpu` by CPU time, which other work disturbs
    less.

    Args:
        name: name of the first.
        count: units of work that both did in that time.
        unit: unit of the work.
        ours: our time.
        other: time of the baseline.
        what: description of the baseline.
        at_least: lower limit, by wall-clock time.
    """
    by_clock = Result(count / ours.seconds, f"{unit}/s", count / other.seconds, what, at_least=at_least)
    by_cpu = Result(count / ours.cpu_seconds, f"{unit}/CPU-s", count / other.cpu_seconds, what)
    return {name: by_clock, f"{name}_cpu": by_cpu}
