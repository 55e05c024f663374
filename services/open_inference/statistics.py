"""Counts and times of each model version, as the protocol's statistics extension reports them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fairlead.types import Scores

_MAX_VERSIONS = 16
"""Versions whose counts are kept, most recently used."""


@dataclass(slots=True)
class Durations:
    """Durations of one kind."""

    count: int = 0
    """Number of durations."""
    nanoseconds: int = 0
    """Their sum."""

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.count += 1
        self.nanoseconds += round(seconds * 1e9)


@dataclass(slots=True)
class VersionStatistics:
    """Counts of one version since the process started."""

    last_milliseconds: int = 0
    """Unix time of the last success."""
    sequences: int = 0
    """Sequences scored."""
    success: Durations = field(default_factory=Durations)
    """Requests that were scored, from reading the request to its scores."""
    fail: Durations = field(default_factory=Durations)
    """Requests that failed."""
    queue: Durations = field(default_factory=Durations)
    """Time in the queue."""
    compute: Durations = field(default_factory=Durations)
    """Time of the model's forward passes."""
    rest: Durations = field(default_factory=Durations)
    """The remaining time: reading tensors, tokenizing."""

    def add_success(self, scores: Scores, *, seconds: float) -> None:
        """Count a request that was scored."""
        self.last_milliseconds = time.time_ns() // 1_000_000
        self.sequences += len(scores.scores)
        self.success.add(seconds)
        self.queue.add(scores.queue_seconds)
        self.compute.add(scores.compute_seconds)
        self.rest.add(max(0.0, seconds - scores.queue_seconds - scores.compute_seconds))


class InferenceStatistics:
    """Counts by version. Used within one event loop."""

    def __init__(self) -> None:
        self._versions: OrderedDict[str, VersionStatistics] = OrderedDict()

    def of(self, version: str) -> VersionStatistics:
        """Return the counts of a version."""
        found = self._versions.setdefault(version, VersionStatistics())
        self._versions.move_to_end(version)
        if len(self._versions) > _MAX_VERSIONS:
            self._versions.popitem(last=False)
        return found

    @contextmanager
    def counting(self, version: str) -> Iterator[Callable[[Scores], None]]:
        """Time one request; the caller passes its scores to the function that this yields.

        Args:
            version: the version that a failure counts for; a success counts for the version that scored.
        """
        began = time.monotonic()
        try:
            yield lambda scores: self.of(scores.model_version).add_success(
                scores, seconds=time.monotonic() - began
            )
        except Exception:
            self.of(version).fail.add(time.monotonic() - began)
            raise
