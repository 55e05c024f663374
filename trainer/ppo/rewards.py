"""What a score counts: normalised by all scores so far, clipped, less a penalty for answers that never ended.

Pure; the running mean and deviation are part of the checkpoint. Shapes: B rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fairlead.config.training import PpoSection
from fairlead.errors import CorruptCheckpoint

EPSILON = 1e-8
"""Added to the deviation before it divides."""


@dataclass(frozen=True, slots=True)
class ScoreScale:
    """Mean and deviation of every score seen, by Welford's method, in the order of tasks."""

    count: int = 0
    """Scores seen."""
    mean: float = 0.0
    """Their mean."""
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    @property
    def deviation(self) -> float:
        """Standard deviation, biased; 0 for no scores."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def updated(self, scores: Iterable[float]) -> ScoreScale:
        """With more scores."""
        count, mean, squares = self.count, self.mean, self.squares
        for score in scores:
            count += 1
            distance = score - mean
            mean += distance / count
            squares += distance * (score - mean)
        return ScoreScale(count, mean, squares)

    def to_json(self) -> dict[str, object]:
        """The form that the checkpoint keeps; floats come back to the bit."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    @classmethod
    def from_json(cls, value: object) -> ScoreScale:
        """The inverse of `to_json`.

        Raises:
            CorruptCheckpoint: if it has another form.
        """
        content: Any = value
        try:
            return cls(int(content["count"]), float(content["mean"]), float(content["squares"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptCheckpoint(f"the scale of scores has an unknown form: {error}") from error


def shaped_scores(scores_B: Tensor, cut_off_B: Tensor, section: PpoSection, scale: ScoreScale) -> Tensor:
    """What stands on the last token of each answer.

    Args:
        scores_B: of the reward model.
        cut_off_B: True where the answer met the length limit.
        section: what is normalised, clipped and penalised.
        scale: mean and deviation; only read with `normalise_scores`.
    """
    if section.normalise_scores:
        scores_B = (scores_B - scale.mean) / (scale.deviation + EPSILON)
    return scores_B.clamp(-section.score_clip, section.score_clip) - section.missing_eos_penalty * cut_off_B
