"""What a run of one side with one seed gave, and what follows from several of them.

Everything here is numbers and files; nothing runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """A policy during a run, evaluated on held-out prompts."""

    episodes: int
    """Answers that it was trained on."""
    gold: float
    """Mean gold reward."""
    kl: float
    """KL to the policy that the run started from, nats per answer."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run."""

    cpu_seconds: float
    """CPU time per episode of all processes, without start-up."""
    seconds: float
    """Wall-clock time per episode, without start-up."""
    whole_cpu_seconds: float
    """CPU time of the whole run, start-up included."""
    last_score: float
    """Mean score of the last batch."""
    points: tuple[Point, ...] = ()
    """The policy at the start, then along the way, then at the end."""

    @staticmethod
    def of(kept: dict[str, Any]) -> Outcome:
        """Return the outcome of a file."""
        return Outcome(**{**kept, "points": tuple(Point(**point) for point in kept["points"])})

    def __str__(self) -> str:
        cost = f"{1000 * self.cpu_seconds:.2f} CPU-ms per episode, {self.whole_cpu_seconds:.1f} CPU-s in all"
        return f"{cost}, gold {self.end.gold:.2f} at KL {self.end.kl:.2f}" if self.points else cost

    @property
    def end(self) -> Point:
        """The policy at the end."""
        return self.points[-1]


def episodes_to(points: Sequence[Point], gold: float) -> float:
    """Return the episodes at which the curve first reaches a gold reward, interpolated; ∞ if it does not."""
    before: Point | None = None
    for point in points:
        if point.gold >= gold:
            if before is None:
                return float(point.episodes)
            share = (gold - before.gold) / (point.gold - before.gold)
            return before.episodes + share * (point.episodes - before.episodes)
        before = point
    return math.inf


def mean_curve(outcomes: Sequence[Outcome]) -> list[Point]:
    """Return the mean over seeds at each number of episodes; of the KL, the square of the mean root.

    The picture has √KL on its axis, so that is what is averaged.
    """
    found = []
    for points in zip(*(outcome.points for outcome in outcomes), strict=True):
        root = statistics.fmean(math.sqrt(max(0.0, point.kl)) for point in points)
        gold = statistics.fmean(point.gold for point in points)
        found.append(Point(points[0].episodes, gold, root * root))
    return found


def evaluated(updates: int, *, points: int) -> list[int]:
    """Return the updates after which a policy is evaluated: evenly spread, the last included."""
    return sorted({math.ceil(updates * number / points) for number in range(1, points + 1)})
