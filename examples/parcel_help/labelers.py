"""Simulated labelers: they rank answers by the gold reward, with noise.

A ranking is a draw from the Plackett-Luce model with worths gold ÷ NOISE. Two labelers agree on about 75% of
pairs, as the labelers of InstructGPT did (72.6 to 77.3%).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

NOISE = 0.7
"""Differences of the gold reward are divided by it. A higher value means more disagreement."""


def rank(worths: Sequence[float], *, rng: random.Random) -> list[int]:
    """Return indices of the answers, best first: a Plackett-Luce draw, by Gumbel noise on worth ÷ NOISE."""
    noisy = [worth / NOISE + gumbel(rng) for worth in worths]
    return sorted(range(len(worths)), key=noisy.__getitem__, reverse=True)


def ranking_probability(worths: Sequence[float], order: Sequence[int]) -> float:
    """Return the probability of a ranking: the best is drawn from all, the second from the rest, etc."""
    weights = [math.exp(worth / NOISE) for worth in worths]
    rest = sum(weights)
    probability = 1.0
    for index in order:
        probability *= weights[index] / rest
        rest -= weights[index]
    return probability


def gumbel(rng: random.Random) -> float:
    """Return a draw from the standard Gumbel distribution; differences of two are logistic."""
    # random() may return 0, which has no logarithm; 1 − random() is in (0, 1].
    return -math.log(-math.log(1 - rng.random()) or 5e-324)
