"""The weight path: as fast as the wire, no pause for generation, and many replicas in the time of one."""

from __future__ import annotations

from benchmarks.result import Result, Settings
from benchmarks.weights import path, relay, swap


def run(settings: Settings) -> dict[str, Result]:
    """All three."""
    return path.run(settings) | relay.run(settings) | swap.run(settings)
