"""The queue of samples that wait for a slot: first come first served, with a limit in tokens.

Part of the engine. Any thread may add requests; the engine's thread takes samples.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Container
from threading import Lock

from fairlead.errors import Overloaded
from fairlead.types import WeightVersion
from services.policy.pending_request import PendingRequest
from services.policy.sample_state import SampleState

_MAX_DEFERRED_STEPS = 4
"""Decoding steps for which free slots may wait for more of them, or for more samples while these arrive;
tuned by benchmarks/generation.py."""
_FREE_FRACTION = 8
"""A prefill waits until this fraction of the slots is free, because it costs as much as a step of all slots.
"""
_PAUSE_SECONDS = 0.003
"""Time without a further request after which a batch of requests counts as complete."""
_LONGEST_ARRIVAL_SECONDS = 0.05


class Scheduler:
    """The waiting samples."""

    def __init__(
        self, *, slots: int, max_queue_tokens: int, max_deferred_steps: int = _MAX_DEFERRED_STEPS
    ) -> None:
        """`max_deferred_steps` is the number of calls of `take` that may wait for more free slots."""
        self._slots = slots
        self._max_deferred_steps = max_deferred_steps
        self._max_queue_tokens = max_queue_tokens
        self._lock = Lock()
        self._waiting: deque[tuple[PendingRequest, SampleState]] = deque()
        self._tokens = 0
        self._deferred_steps = 0
        self._has_arrivals = False
        self._first_arrival = self._last_arrival = -math.inf

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: PendingRequest, *, tokens_per_second: float) -> None:
        """Append the samples of a request.

        Raises:
            Overloaded: if the queue is not empty and the samples would exceed its limit.
        """
        tokens = sum(sample.num_tokens for sample in request.samples)
        with self._lock:
            if self._tokens + tokens > self._max_queue_tokens:
                self._drop_closed()
            if self._waiting and self._tokens + tokens > self._max_queue_tokens:
                delay = min(30.0, max(0.1, self._tokens / max(tokens_per_second, 1.0)))
                raise Overloaded(
                    f"the queue is full: {self._tokens} tokens are waiting, "
                    f"{tokens} more exceed the limit of {self._max_queue_tokens}",
                    retry_after_seconds=round(delay, 1),
                )
            self._tokens += tokens
            self._has_arrivals = True
            self._last_arrival = time.monotonic()
            if not self._waiting:
                self._first_arrival = self._last_arrival
            self._waiting.extend((request, sample) for sample in request.samples)

    def take(
        self, *, free: int, version: WeightVersion, only: Container[PendingRequest] | None = None
    ) -> list[tuple[PendingRequest, SampleState]]:
        """Return samples that get a slot now, or none if it is worth waiting for more free slots or samples.

        Args:
            free: number of free slots.
            version: the weights in use; requests for newer ones keep waiting.
            only: take samples of these requests only; None for all.
        """
        if not free or not self._waiting:
            return []
        with self._lock:
            may_run = [
                request.is_served_by(version) and (only is None or request in only)
                for request, _ in self._waiting
            ]
            ready = sum(may_run)
            batch = max(1, self._slots // _FREE_FRACTION)
            # Requests of one batch of tasks arrive within a few steps of each other.
            is_arriving = self._has_arrivals and free < self._slots and ready < min(free, batch)
            self._has_arrivals = False
            if not ready:
                return []
            is_worth_waiting = is_arriving or free < min(ready, batch)
            if is_worth_waiting and self._deferred_steps < self._max_deferred_steps:
                self._deferred_steps += 1
                return []
            self._deferred_steps = 0
            taken: list[tuple[PendingRequest, SampleState]] = []
            kept: deque[tuple[PendingRequest, SampleState]] = deque()
            for entry, runs in zip(self._waiting, may_run, strict=True):
                fits = len(taken) < free and runs
                (taken if fits else kept).append(entry)
            self._keep(kept)
            return taken

    def arriving_seconds(self) -> float:
        """Return how long it is worth waiting for further requests before the first step; 0 if it is not.

        A batch of tasks arrives as one request after another. The first of them would be decoded by
        themselves, while reading the others takes twice as long.
        """
        if not self._max_deferred_steps:
            return 0.0
        now = time.monotonic()
        with self._lock:
            end = min(self._last_arrival + _PAUSE_SECONDS, self._first_arrival + _LONGEST_ARRIVAL_SECONDS)
        return max(0.0, end - now)

    def drop_closed(self) -> None:
        """Remove the samples of requests that have ended."""
        with self._lock:
            self._drop_closed()

    def requests(self) -> list[PendingRequest]:
        """Return every request with a waiting sample, once."""
        with self._lock:
            return list(dict.fromkeys(request for request, _ in self._waiting))

    def _drop_closed(self) -> None:
        if any(request.closed for request, _ in self._waiting):
            self._keep(deque(entry for entry in self._waiting if not entry[0].closed))

    def _keep(self, entries: deque[tuple[PendingRequest, SampleState]]) -> None:
        self._waiting = entries
        self._tokens = sum(sample.num_tokens for _, sample in entries)
