"""What a benchmark says: a median, what it was compared with, and the ratio of the two."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """A figure beside its baseline, measured in the same run."""

    value: float
    """Median of ours."""
    unit: str
    """Its unit."""
    baseline: float
    """Median of what it is compared with, in the same unit."""
    what: str
    """What the baseline is."""

    @property
    def ratio(self) -> float:
        """Value ÷ baseline."""
        return self.value / self.baseline


def interleaved(variants: Mapping[str, Callable[[], object]], *, rounds: int = 5) -> dict[str, float]:
    """Median seconds of each variant; they take turns, so that drift of the machine hits all alike."""
    for run in variants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
