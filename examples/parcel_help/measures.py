"""What the report measures: win rates, a reward model's accuracy, and the baselines that it has to beat.

Plain numbers in, plain numbers out; nothing here knows models, files or services.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from examples.bootstrap import bootstrap_interval
from trainer.reward_model import baselines


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to a prompt, as a labeler ordered them."""

    prompt: str
    """What was asked."""
    chosen: str
    """The answer that the labeler put first."""
    rejected: str
    """The other."""
    gold_margin: float
    """Gold reward of `chosen` less that of `rejected`."""


def accuracy(margins: Sequence[float]) -> float:
    """Share of positive margins; 0 counts half. NaN for none."""
    if not margins:
        return float("nan")
    return sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins) / len(margins)


def accuracies(margins: Sequence[float], comparisons: Sequence[Comparison]) -> dict[str, float]:
    """How often margins (score of chosen less that of rejected) agree with the labels, and with gold.

    Answers of equal gold reward have no right order and are left out of the second.
    """
    by_gold = [
        margin if comparison.gold_margin > 0 else -margin
        for margin, comparison in zip(margins, comparisons, strict=True)
        if comparison.gold_margin != 0
    ]
    return {"accuracy_labels": accuracy(margins), "accuracy_gold": accuracy(by_gold)}


def longer_margins(comparisons: Sequence[Comparison]) -> list[float]:
    """The baseline that prefers the longer answer: differences of length in words."""
    return baselines.longer_wins(_texts(comparisons))


def bag_of_words_margins(train: Sequence[Comparison], heldout: Sequence[Comparison]) -> list[float]:
    """The baseline that knows words but not their order: a logistic regression on differences of counts."""
    return baselines.bag_of_words(_texts(train), _texts(heldout))


def win_rate(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> float:
    """How probably an answer from `after` is worth more than one from `before` to the same prompt.

    Every answer is compared with every other to its prompt; ties count half; prompts weigh the same.

    Args:
        before: worths of the answers to each prompt.
        after: the same prompts.
    """
    return float(np.mean([_wins(worths, after[prompt]) for prompt, worths in before.items()]))


def win_rate_interval(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], *, seed: int
) -> tuple[float, float]:
    """95% interval of `win_rate`: prompts drawn again with replacement."""
    rates = [_wins(worths, after[prompt]) for prompt, worths in before.items()]
    return bootstrap_interval(rates, seed=seed)


def _wins(before: Sequence[float], after: Sequence[float]) -> float:
    gaps = np.subtract.outer(np.asarray(after), np.asarray(before))
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def _texts(comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    return [(comparison.chosen, comparison.rejected) for comparison in comparisons]
