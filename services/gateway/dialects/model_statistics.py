"""What this process has scored since it started, in the shape of Triton's statistics extension."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fairlead.types import Scores


class ModelStatistics:
    """Counts requests of one model; used within one event loop."""

    def __init__(self) -> None:
        self._durations = {
            name: [0, 0]
            for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        }
        self._inferences = 0
        self._last_milliseconds = 0

    @contextmanager
    def counting(self, num_items: int) -> Iterator[Callable[[Scores], None]]:
        """For the length of one request; what it gives takes note of the scores."""
        started = time.monotonic_ns()
        scored: list[Scores] = []
        try:
            yield scored.append
        finally:
            took = time.monotonic_ns() - started
            self._last_milliseconds = time.time_ns() // 1_000_000
            self._add("success" if scored else "fail", took)
            for scores in scored:
                self._inferences += num_items
                self._add("queue", round(scores.queue_seconds * 1e9))
                self._add("compute_infer", round(scores.compute_seconds * 1e9))
                self._add("compute_input", 0)
                self._add("compute_output", 0)

    def _add(self, name: str, nanoseconds: int) -> None:
        self._durations[name][0] += 1
        self._durations[name][1] += nanoseconds

    def report(self, name: str, version: str) -> dict[str, Any]:
        """As Triton's HTTP statistics: counts and nanoseconds."""
        durations = {
            key: {"count": count, "ns": nanoseconds} for key, (count, nanoseconds) in self._durations.items()
        }
        empty = {"count": 0, "ns": 0}
        return {
            "model_stats": [
                {
                    "name": name,
                    "version": version,
                    "last_inference": self._last_milliseconds,
                    "inference_count": self._inferences,
                    "execution_count": self._durations["success"][0],
                    "inference_stats": durations | {"cache_hit": empty, "cache_miss": empty},
                    "batch_stats": [],
                }
            ]
        }
