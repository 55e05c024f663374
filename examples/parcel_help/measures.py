"""Measures of the report: win rates, the accuracy of a reward model, and baselines that it must beat.

Computes numbers from numbers; knows no models, files or services.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from examples.parcel_help.labelers import NOISE
from fairlead.judgments.calibration import accuracy
from fairlead.judgments.resampling import mean_interval
from trainer.reward_model import baselines


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to a prompt, ordered by a labeler."""

    prompt: str
    """The prompt."""
    chosen: str
    """The answer that the labeler preferred."""
    rejected: str
    """The other answer."""
    gold_margin: float
    """Gold reward of `chosen` minus that of `rejected`."""


def accuracies(margins: Sequence[float], comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Return how often margins (score of chosen minus that of rejected) agree with the labels and with gold.

    Pairs with equal gold reward have no correct order and are left out of the second figure.
    """
    by_gold = [
        margin if comparison.gold_margin > 0 else -margin
        for margin, comparison in zip(margins, comparisons, strict=True)
        if comparison.gold_margin != 0
    ]
    return {"accuracy_labels": accuracy(margins), "accuracy_gold": accuracy(by_gold)}


def confirmed(*, gold_gain: float, proxy_gain: float) -> float | None:
    """Return the share of a gain in score that gold confirms; None if the score did not rise.

    Labelers prefer an answer that is better by Δ with the log-odds Δ ÷ NOISE, and a reward model's scores are
    log-odds, so a score of 1 claims NOISE of gold.
    """
    return gold_gain / (NOISE * proxy_gain) if proxy_gain > 0 else None


def longer_margins(comparisons: Sequence[Comparison]) -> list[float]:
    """Return the margins of a baseline that prefers the longer answer: differences of length in words."""
    return baselines.longer_wins(_texts(comparisons))


def bag_of_words_margins(train: Sequence[Comparison], heldout: Sequence[Comparison]) -> list[float]:
    """Return the margins of a bag-of-words baseline: a logistic regression on differences of word counts."""
    return baselines.bag_of_words(_texts(train), _texts(heldout))


def win_rate(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> float:
    """Return the probability that an answer from `after` is better than one from `before` to the same prompt.

    Every answer is compared with every answer of the other side to the same prompt. Ties count half; all
    prompts have the same weight.

    Args:
        before: gold rewards of the answers to each prompt.
        after: the same for the other side; the same prompts.
    """
    return float(np.mean([_wins(rewards, after[prompt]) for prompt, rewards in before.items()]))


def win_rate_interval(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], *, seed: int
) -> tuple[float, float]:
    """Return the 95% interval of `win_rate`, by resampling prompts with replacement."""
    rates = [_wins(rewards, after[prompt]) for prompt, rewards in before.items()]
    return mean_interval(rates, seed=seed)


def _wins(before: Sequence[float], after: Sequence[float]) -> float:
    gaps = np.subtract.outer(np.asarray(after), np.asarray(before))
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def _texts(comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    return [(comparison.chosen, comparison.rejected) for comparison in comparisons]
