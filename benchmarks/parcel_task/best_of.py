"""Best-of-n by a proxy, for every n at once from one sample of answers: what proxy and gold it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.clients.best_of_n import divergence, expected_best, sizes

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BestOf:
    """What best-of-n gives on each prompt."""

    n: tuple[int, ...]
    """Powers of two, from 1."""
    proxy: tuple[tuple[float, ...], ...]
    """By prompt and n: the score of the best."""
    gold: tuple[tuple[float, ...], ...]
    """By prompt and n: the gold reward of the answer with the best score."""
    words: tuple[float, ...]
    """By n: the mean length of the best."""

    @staticmethod
    def of(kept: Mapping[str, list[object]]) -> BestOf:
        """Return what a file holds."""
        return BestOf(
            tuple(kept["n"]),  # type: ignore[arg-type]
            tuple(map(tuple, kept["proxy"])),  # type: ignore[arg-type]
            tuple(map(tuple, kept["gold"])),  # type: ignore[arg-type]
            tuple(kept["words"]),  # type: ignore[arg-type]
        )

    @property
    def distances(self) -> list[float]:
        """√KL of each n, by the upper bound log n − (n−1)/n."""
        return [math.sqrt(divergence(n)) for n in self.n]

    @property
    def proxy_gains(self) -> Array:
        """By prompt and n: score minus that of one answer."""
        return _gains(self.proxy)

    @property
    def gold_gains(self) -> Array:
        """By prompt and n: gold minus that of one answer."""
        return _gains(self.gold)


def best_of(
    scores: Mapping[str, Sequence[float]],
    golds: Mapping[str, Sequence[float]],
    words: Mapping[str, Sequence[float]],
) -> BestOf:
    """Return what the answers with the best scores give.

    Args:
        scores: of the proxy, by prompt; equally many for each.
        golds: gold rewards of the same answers.
        words: their lengths.
    """
    count = len(next(iter(scores.values())))
    known = sizes(count)
    proxy, gold, length = (
        [[expected_best(own, n, values[prompt]) for n in known] for prompt, own in scores.items()]
        for values in (scores, golds, words)
    )
    means = np.mean(length, axis=0)
    return BestOf(
        tuple(known),
        tuple(tuple(round(value, 5) for value in own) for own in proxy),
        tuple(tuple(round(value, 5) for value in own) for own in gold),
        tuple(round(float(value), 3) for value in means),
    )


def _gains(values: Sequence[Sequence[float]]) -> Array:
    table = np.asarray(values, dtype=np.float64)
    gains: Array = table - table[:, :1]
    return gains
