"""The laws of over-optimisation by Gao, Schulman and Hilton (2022, arXiv 2210.10760), by least squares.

The gain in gold over the policy at the start, at distance d = √KL from it, is d(α − β d) for best-of-n and
d(α − β log d) for reinforcement learning. Both are linear in α and β.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np

Law = Literal["best of n", "reinforcement learning"]
_SHAPES: Mapping[str, Callable[[float], tuple[float, float]]] = {
    "best of n": lambda d: (d, -d * d),
    # d log d goes to 0 with d.
    "reinforcement learning": lambda d: (d, -d * math.log(d) if d > 0 else 0.0),
}


@dataclass(frozen=True, slots=True)
class Fit:
    """A law with its coefficients."""

    law: Law
    """Which."""
    alpha: float
    """α: gain per unit of d at first."""
    beta: float
    """β: what over-optimisation takes away; 0 or less if it is not seen."""
    residual: float
    """Root of the mean square of the residuals, in units of gold."""
    explained: float
    """Share of the variance of the gains that the law explains, R²."""

    def at(self, d: float) -> float:
        """Return the gain at a distance."""
        first, second = _SHAPES[self.law](d)
        return self.alpha * first + self.beta * second

    @property
    def peak(self) -> float | None:
        """Return the distance of the largest gain; None if the law has none."""
        if self.beta <= 0:
            return None
        if self.law == "best of n":
            return self.alpha / (2 * self.beta) if self.alpha > 0 else None
        return math.exp(self.alpha / self.beta - 1)


def fit(law: Law, distances: Sequence[float], gains: Sequence[float]) -> Fit:
    """Return the law nearest to points.

    Args:
        law: its form.
        distances: d of each point, not negative; two different ones above 0 at least.
        gains: gold minus that at the start.

    Raises:
        ValueError: if the points do not determine both coefficients.
    """
    shape = np.array([_SHAPES[law](d) for d in distances])
    wanted = np.asarray(gains, dtype=float)
    found, _, rank, _ = np.linalg.lstsq(shape, wanted, rcond=None)
    if rank < 2:
        raise ValueError(f"{len(wanted)} points do not determine the two coefficients of {law}")
    residuals = wanted - shape @ found
    spread = float(((wanted - wanted.mean()) ** 2).sum())
    explained = 1 - float((residuals**2).sum()) / spread if spread else math.nan
    return Fit(law, float(found[0]), float(found[1]), float(np.sqrt((residuals**2).mean())), explained)


def mean(fits: Sequence[Fit]) -> Fit:
    """Return the law with the mean coefficients of fits to single seeds; its residual is that of all seeds.

    Points of one curve are not independent, but seeds are, so each is fitted by itself.
    """
    return Fit(
        fits[0].law,
        fmean(one.alpha for one in fits),
        fmean(one.beta for one in fits),
        math.sqrt(fmean(one.residual**2 for one in fits)),
        fmean(one.explained for one in fits),
    )
