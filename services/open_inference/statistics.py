"""Counts of one model version, as the Open Inference Protocol's statistics tell them."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

_MAX_VERSIONS = 16
"""Of versions that are served no more the counts of the last few are kept."""


@dataclass(slots=True)
class Spans:
    """Spans of time of one kind."""

    count: int = 0
    """How many."""
    nanoseconds: int = 0
    """All together."""

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.nanoseconds += round(seconds * 1e9)


@dataclass(slots=True)
class VersionStatistics:
    """What one version has done since the process began."""

    last_milliseconds: int = 0
    """When it last answered, since 1970."""
    sequences: int = 0
    """Sequences scored."""
    success: Spans = field(default_factory=Spans)
    """Requests answered, from reading to answer."""
    fail: Spans = field(default_factory=Spans)
    """Requests refused."""
    queue: Spans = field(default_factory=Spans)
    """Waiting for the model."""
    compute: Spans = field(default_factory=Spans)
    """The model's work."""
    rest: Spans = field(default_factory=Spans)
    """What is neither: reading tensors, texts to ids."""


class InferenceStatistics:
    """Counts by version; bounded."""

    def __init__(self) -> None:
        self._versions: OrderedDict[str, VersionStatistics] = OrderedDict()

    def of(self, version: str) -> VersionStatistics:
        """The counts of a version."""
        found = self._versions.setdefault(version, VersionStatistics())
        self._versions.move_to_end(version)
        if len(self._versions) > _MAX_VERSIONS:
            self._versions.popitem(last=False)
        return found

    def answered(
        self, version: str, *, sequences: int, seconds: float, queue_seconds: float, compute_seconds: float
    ) -> None:
        """A request was."""
        counts = self.of(version)
        counts.last_milliseconds = time.time_ns() // 1_000_000
        counts.sequences += sequences
        counts.success.add(seconds)
        counts.queue.add(queue_seconds)
        counts.compute.add(compute_seconds)
        counts.rest.add(max(0.0, seconds - queue_seconds - compute_seconds))

    def refused(self, version: str, *, seconds: float) -> None:
        """A request was not answered."""
        self.of(version).fail.add(seconds)
