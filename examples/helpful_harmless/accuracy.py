"""Compare the reward model with baselines on held-out pairs of people.

Everything is computed from margins: the score of the answer that people found less harmful minus that of the
other one. The baselines are cheap; a reward model that is not above them has learnt little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from examples.helpful_harmless.reading import Readings
from fairlead.judgments.calibration import accuracy
from fairlead.judgments.resampling import mean_interval
from trainer.reward_model import baselines

REFERENCE = "bag_of_words"
"""Baseline that the others are compared with."""
TITLES = {
    "reward_model": "reward model",
    "judge": "the judge: a linear head on features of the untuned model",
    "bag_of_words": "bag of words",
    "shorter_wins": "the shorter answer wins",
    "longer_wins": "the longer answer wins",
    "log_likelihood": "log-likelihood of the answer, untuned model",
    "mean_log_likelihood": "the same, mean per token",
}
"""What each row of the table is."""


def margins_of_texts(
    train: Sequence[tuple[str, str]], heldout: Sequence[tuple[str, str]]
) -> dict[str, list[float]]:
    """Return the margins of the baselines that read only the texts, as (better, worse)."""
    longer = baselines.longer_wins(heldout)
    return {
        "bag_of_words": baselines.bag_of_words(train, heldout),
        "shorter_wins": [-margin for margin in longer],
        "longer_wins": longer,
    }


def margins_of_likelihood(better: Readings, worse: Readings) -> dict[str, list[float]]:
    """Return the margins by the log-likelihood of answers, whole and per token.

    Args:
        better: of the answers that people preferred.
        worse: of the others, in the same order.
    """
    return {
        "log_likelihood": (better.logprobs_N - worse.logprobs_N).tolist(),
        "mean_log_likelihood": (better.mean_logprobs - worse.mean_logprobs).tolist(),
    }


def compare(margins: Mapping[str, Sequence[float]], *, seed: int) -> dict[str, dict[str, Any]]:
    """Return for each source of margins its `accuracy`, and `gain` over the reference on the same pairs, with
    95% intervals by resampling pairs. Each prompt has one pair.
    """
    reference = right(margins[REFERENCE])
    found = {}
    for name, of_pairs in margins.items():
        gains = [one - other for one, other in zip(right(of_pairs), reference, strict=True)]
        found[name] = {
            **with_interval(of_pairs, seed=seed),
            "gain": fmean(gains),
            "gain_interval": mean_interval(gains, seed=seed),
        }
    return found


def with_interval(margins: Sequence[float], *, seed: int) -> dict[str, Any]:
    """Return the accuracy of margins and its 95% interval."""
    return {"accuracy": accuracy(margins), "interval": mean_interval(right(margins), seed=seed)}


def right(margins: Sequence[float]) -> list[float]:
    """Return 1 for each positive margin, 0.5 for a tie, 0 for a negative one."""
    return [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the result of `compare` as Markdown."""
    lines = [
        "| held-out pairs | accuracy | 95% interval | above the bag of words |",
        "|---|---:|---:|---:|",
    ]
    for name, title in TITLES.items():
        if name not in figures:
            continue
        row = figures[name]
        low, high = row["interval"]
        gain = "" if name == REFERENCE else f"{row['gain']:+.1%} ({_range(row['gain_interval'])})"
        lines.append(f"| {title} | {row['accuracy']:.1%} | {low:.1%} to {high:.1%} | {gain} |")
    return "\n".join(lines)


def _range(interval: Sequence[float]) -> str:
    return f"{interval[0]:+.1%} to {interval[1]:+.1%}"
