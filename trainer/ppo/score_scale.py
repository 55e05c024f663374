"""Running mean and deviation of the scores, which normalise the next ones; part of the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fairlead.errors import CorruptCheckpoint


@dataclass(frozen=True, slots=True)
class ScoreScale:
    """Mean and deviation of every score so far, by Welford's method, in the order of task ids."""

    count: int = 0
    """Number of scores so far."""
    mean: float = 0.0
    """Their mean."""
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    @property
    def deviation(self) -> float:
        """Standard deviation (biased estimate); 0 before the first score."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def updated(self, scores: Iterable[float]) -> ScoreScale:
        """Return the scale after more scores."""
        count = self.count
        mean = self.mean
        squares = self.squares
        for score in scores:
            count += 1
            distance = score - mean
            mean += distance / count
            squares += distance * (score - mean)
        return ScoreScale(count, mean, squares)

    def to_json(self) -> dict[str, object]:
        """Return the JSON form for the checkpoint; floats are restored bit for bit."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    @classmethod
    def from_json(cls, value: object) -> ScoreScale:
        """Read what `to_json` returned.

        Raises:
            CorruptCheckpoint: if the value has another form.
        """
        content: Any = value
        try:
            return cls(int(content["count"]), float(content["mean"]), float(content["squares"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptCheckpoint(f"the checkpoint has an invalid score_scale: {error!r}") from error
