"""The weight path: its speed against the wire, the pause of generation, and many replicas against one."""

from __future__ import annotations

from benchmarks.result import Result, Settings
from benchmarks.weights import path, relay, swap


def run(settings: Settings) -> dict[str, Result]:
    """Run all three."""
    return path.run(settings) | relay.run(settings) | swap.run(settings)
