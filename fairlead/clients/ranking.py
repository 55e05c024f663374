"""Responses to one prompt in the order of their scores, and how sure that order is. Knows no wire."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fairlead.errors import InvalidInput
from fairlead.types import Scores


@dataclass(frozen=True, slots=True)
class Ranked:
    """One response and what the reward model thinks of it."""

    index: int
    """Its place among the responses asked about."""
    response: str
    """The response."""
    score: float
    """Its score; calibrated if the ranking is."""
    probability: float | None
    """That a labeler finds it the best of all (Plackett–Luce); None if scores are not calibrated."""
    num_tokens: int
    """Tokens read, prompt and response together."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Responses to one prompt, best first."""

    ranked: tuple[Ranked, ...]
    """Every response once; of equal scores the earlier first."""
    model_version: str
    """Version of the model that scored them."""
    is_calibrated: bool
    """Whether scores were divided by the model's temperature."""

    @property
    def best(self) -> Ranked:
        """The first."""
        return self.ranked[0]


def calibrated(scores: Scores) -> Scores:
    """Scores divided by the model's temperature: σ(difference) is then the chance that a labeler prefers one.

    Raises:
        InvalidInput: the model has no temperature.
    """
    if scores.calibration_temperature <= 0:
        raise InvalidInput(
            "calibrated",
            got=True,
            allowed="false: the reward model has no calibration temperature (reward.calibration_temperature)",
        )
    return replace(scores, scores=tuple(score / scores.calibration_temperature for score in scores.scores))


def rank(responses: Sequence[str], scores: Scores, *, calibrate: bool | None = None) -> Ranking:
    """Responses in the order of their scores.

    Args:
        responses: at least one.
        scores: of each, raw.
        calibrate: divide by the temperature; None does where there is one.

    Raises:
        InvalidInput: asked to calibrate, and the model has no temperature.
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
    """Probability that each is the best of all: softmax of calibrated scores, as Plackett–Luce has it.

    For two responses it is the σ(difference) that calibration was fitted for (Bradley–Terry).
    """
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
