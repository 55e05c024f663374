"""Signals of reward hacking in the rollouts of one update, measured and compared with a baseline.

Pure functions of a rollout batch; `guard` compares the values with their limits.

Shapes: B rollouts, N response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trainer.ppo.batch import RolloutBatch

SIGNALS = (
    "length_ratio",
    "repetition",
    "eos_ratio",
    "kl",
    "kl_k3",
    "entropy_ratio",
    "distinct_ratio",
    "score_length",
    "scores_outside",
    "mismatch",
)
"""Every signal measured on the rollouts of an update, in the order of the report."""

OVERCONFIDENCE = "overconfidence"
"""The signal measured on human labels, see `fresh_labels`."""

NGRAM = 3
"""Length in tokens of the n-grams whose repetition is measured."""
_STANDARD_ERRORS = 3.0


def measure(
    batch: RolloutBatch, figures: Mapping[str, float], *, quantiles: tuple[float, float] | None
) -> dict[str, float]:
    """Measure the rollouts of an update, before any comparison.

    Args:
        batch: the rollouts.
        figures: of the update; read are `response_length`, `eos_rate`, `kl`, `kl_k3`, `entropy` and
            `mismatch_mean`.
        quantiles: 0.5% and 99.5% quantiles of the reward model's training scores, if known.
    """
    responses = [sequence.token_ids[sequence.prompt_length :] for sequence in batch.sequences]
    scores = [float(score) for score in batch.scores_B]
    found = {
        name: figures[name]
        for name in ("response_length", "eos_rate", "kl", "kl_k3", "entropy")
        if name in figures
    }
    if "mismatch_mean" in figures:
        found["mismatch"] = figures["mismatch_mean"]
    found["repeated"] = sum(map(repeated_share, responses)) / len(responses)
    found["distinct"] = len(set(responses)) / len(responses)
    found["episodes"] = float(len(responses))
    correlation = spearman(scores, [float(len(response)) for response in responses])
    if correlation is not None:
        found["score_length"] = correlation
    if quantiles is not None:
        low, high = quantiles
        found["scores_outside"] = sum(not low <= score <= high for score in scores) / len(scores)
    return found


def mean(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of two results of `measure`, weighted by their episodes.

    A figure that only one of them has is taken from it.
    """
    episodes = first["episodes"] + second["episodes"]
    found = {**first, **second}
    for name in first.keys() & second.keys():
        found[name] = (first[name] * first["episodes"] + second[name] * second["episodes"]) / episodes
    return found | {"episodes": episodes}


def values(now: Mapping[str, float], first: Mapping[str, float]) -> dict[str, float]:
    """Return the signals; a signal without a baseline (a rate that began at 0) is left out.

    A measurement that is not finite stays so in its signal, with or without a baseline.

    Args:
        now: the result of `measure` for this update.
        first: the baseline, the result of `measure` for the first updates of the run; empty for none.
    """
    found = {
        name: now[name]
        for name in ("kl", "kl_k3", "score_length", "scores_outside", "mismatch")
        if name in now
    }
    if "repeated" in first:
        found["repetition"] = now["repeated"] - 3 * first["repeated"]
    for signal, figure in (
        ("length_ratio", "response_length"),
        ("entropy_ratio", "entropy"),
        ("distinct_ratio", "distinct"),
    ):
        if figure in now and not math.isfinite(now[figure]):
            found[signal] = now[figure]
        elif figure in now and first.get(figure, 0.0) > 0:
            found[signal] = now[figure] / first[figure]
    if first.get("eos_rate", 0.0) > 0 and "eos_rate" in now:
        rate = first["eos_rate"]
        # If answers are often cut off from the start, the rate also varies by chance, which is not a drop.
        counts = 1 / now["episodes"] + 1 / first["episodes"]
        chance = _STANDARD_ERRORS * math.sqrt(rate * (1 - rate) * counts)
        found["eos_ratio"] = min(max(now["eos_rate"], rate), now["eos_rate"] + chance) / rate
    return {name: found[name] for name in SIGNALS if name in found}


def repeated_share(tokens: Sequence[int]) -> float:
    """Return the share of an answer's 3-grams that occur earlier in it; 0 for fewer than 3 tokens."""
    ngrams = [tuple(tokens[start : start + NGRAM]) for start in range(len(tokens) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the rank correlation, ties by their mean rank; None if one side does not vary."""
    x, y = _ranks(first), _ranks(second)
    middle = (len(x) + 1) / 2
    spread = math.sqrt(sum((a - middle) ** 2 for a in x) * sum((b - middle) ** 2 for b in y))
    if not spread:
        return None
    return sum((a - middle) * (b - middle) for a, b in zip(x, y, strict=True)) / spread


def _ranks(numbers: Sequence[float]) -> list[float]:
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    ranks = [0.0] * len(numbers)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and numbers[order[end + 1]] == numbers[order[start]]:
            end += 1
        for index in order[start : end + 1]:
            ranks[index] = (start + end) / 2 + 1
        start = end + 1
    return ranks
