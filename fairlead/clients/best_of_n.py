"""What best-of-n gives, for every n from one sample of answers: the expected score of the best, and its
distance.

Knows scores and no services.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby


def expected_best(scores: Sequence[float], n: int, values: Sequence[float] | None = None) -> float:
    """Return the mean value of the best of n answers, over all ways to draw n of the N without replacement.

    The k-th worst of N is the best of a draw in C(k−1, n−1) of C(N, n) ways (Nakano et al. 2021, WebGPT,
    appendix I). This is unbiased, and less noisy than the best of the first n. Answers of equal score share
    their places.

    Args:
        scores: decide which answer is the best.
        n: from 1 to N.
        values: of the answers, such as their gold scores; None for `scores` themselves.
    """
    values = scores if values is None else values
    order = sorted(range(len(scores)), key=lambda index: scores[index])
    ways_of_place = _ways(len(scores), n)
    total = 0.0
    rank = 0
    for _, group in groupby(order, key=lambda index: scores[index]):
        tied = list(group)
        ways = sum(ways_of_place[rank : rank + len(tied)])
        total += ways * sum(values[index] for index in tied) / len(tied)
        rank += len(tied)
    return total / math.comb(len(scores), n)


@lru_cache(maxsize=64)
def _ways(count: int, n: int) -> tuple[int, ...]:
    """Return in how many draws of n the answer of each place, the worst first, is the best."""
    return tuple(math.comb(place, n - 1) for place in range(count))


def divergence(n: int) -> float:
    """Return an upper bound of the KL of best-of-n to the policy, in nats per answer: log n − (n−1)/n
    (Stiennon et al. 2020; Beirami et al. 2024 show that it is a bound).
    """
    return math.log(n) - (n - 1) / n


def sizes(count: int) -> list[int]:
    """Return the n that tables show: powers of two, and `count` itself."""
    return sorted({*(2**power for power in range(count.bit_length())), count})
