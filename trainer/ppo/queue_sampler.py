"""Samples the sizes of the queue for metrics, beside the training loop.

In a thread with a connection of its own: the loop asks once an update, and a loop that waits for rollouts
would show the sizes of the update before. Knows nothing about updates.
"""

from __future__ import annotations

import math
import threading
from types import TracebackType
from typing import Self

from fairlead.errors import FairleadError
from fairlead.metrics import TrainerMetrics
from fairlead.transports.rollouts.base import TrainerQueue

INTERVAL_SECONDS = 5.0
_CLOSE_SECONDS = 5.0
_ENTRIES = ("waiting", "in_flight", "outcomes")


class QueueSampler:
    """Sets the gauges of the queue every few seconds; NaN while Redis does not answer."""

    def __init__(
        self, queue: TrainerQueue, metrics: TrainerMetrics, *, interval_seconds: float = INTERVAL_SECONDS
    ) -> None:
        """
        Args:
            queue: used by this sampler only, and closed by it.
            metrics: get the sizes.
            interval_seconds: time between two samples.
        """
        self._queue = queue
        self._metrics = metrics
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="queue-sampler", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        # A call to a server that does not answer ends by its own timeout; a daemon thread keeps no process.
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._sample()
            self._stop.wait(self._interval_seconds)
        self._queue.close()

    def _sample(self) -> None:
        try:
            stats = self._queue.stats()
        except FairleadError:
            unknown = dict.fromkeys(_ENTRIES, math.nan)
            self._metrics.set_queue(unknown, memory_bytes=math.nan, limit_bytes=math.nan)
            return
        self._metrics.set_queue(
            {what: float(getattr(stats, what)) for what in _ENTRIES},
            memory_bytes=stats.memory_bytes,
            limit_bytes=stats.limit_bytes,
        )
