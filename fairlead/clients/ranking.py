"""Rank the responses to one prompt by their scores, with the probability that each is the best.

Knows nothing about messages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fairlead.errors import InvalidInput
from fairlead.types import Scores


@dataclass(frozen=True, slots=True)
class Ranked:
    """One response and its score."""

    index: int
    """Index among the responses given."""
    response: str
    """Text of the response."""
    score: float
    """Score; calibrated if the ranking is."""
    probability: float | None
    """Probability that a labeler prefers it to all others (Plackett–Luce); None if scores are not
    calibrated."""
    num_tokens: int
    """Number of tokens of prompt and response."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Responses to one prompt, best first."""

    ranked: tuple[Ranked, ...]
    """Every response once; equal scores in the order given."""
    model_version: str
    """Version of the model that scored them."""
    is_calibrated: bool
    """Whether scores were divided by the model's calibration temperature."""

    @property
    def best(self) -> Ranked:
        """The response with the highest score."""
        return self.ranked[0]


def calibrated(scores: Scores) -> Scores:
    """Return scores divided by the model's calibration temperature.

    σ(difference of two scores) is then the probability that a labeler prefers the first.

    Raises:
        InvalidInput: if the model has no calibration temperature.
    """
    if scores.calibration_temperature <= 0:
        raise InvalidInput(
            "calibrated",
            got=True,
            allowed="false: the reward model has no calibration temperature (reward.calibration_temperature)",
        )
    return replace(scores, scores=tuple(score / scores.calibration_temperature for score in scores.scores))


def rank(responses: Sequence[str], scores: Scores, *, calibrate: bool | None = None) -> Ranking:
    """Return the responses in the order of their scores, highest first.

    Args:
        responses: at least one.
        scores: the raw score of each.
        calibrate: divide by the model's calibration temperature; None to do so if there is one.

    Raises:
        InvalidInput: if `calibrate` is true and the model has no calibration temperature.
    """
    divides = scores.calibration_temperature > 0 if calibrate is None else calibrate
    values = (calibrated(scores) if divides else scores).scores
    chances: Sequence[float | None] = best_probabilities(values) if divides else [None] * len(values)
    order = sorted(range(len(values)), key=lambda index: -values[index])
    found = (
        Ranked(index, responses[index], values[index], chances[index], scores.num_tokens[index])
        for index in order
    )
    return Ranking(tuple(found), scores.model_version, divides)


def best_probabilities(values: Sequence[float]) -> list[float]:
    """Return the probability of each to be the best of all: the softmax of calibrated scores (Plackett–Luce).

    For two responses this is the σ(difference) for which calibration was fitted (Bradley–Terry).
    """
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
