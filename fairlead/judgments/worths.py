"""Worths of answers, models or anything else that is ranked: Bradley–Terry and Plackett–Luce.

Both say that a worth θ beats a worth η with the odds exp(θ − η). Bradley–Terry reads a ranking as all its
pairs, Plackett–Luce as a choice of the best, then of the best of the rest, and so on. They are equal for
rankings of two.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import InvalidInput
from fairlead.judgments.maximum import maximum

Floats = NDArray[np.float64]
Ranks = Mapping[str, float]
"""Rank of each item, as in `Judgment.ranks`: the lowest is the best, and equal ranks are a tie."""
MAX_TIED = 12
"""Tied items in one place of a ranking that Plackett–Luce reads; the number of sets doubles with each."""


def bradley_terry(rankings: Iterable[Ranks], *, precision: float = 0.0) -> dict[str, float]:
    """Return the worths under which all pairs of the rankings are most likely; their mean is 0.

    Bradley and Terry 1952; a tie counts as half a win of each. Computed by Newton's method; Hunter 2004, MM
    algorithms for generalized Bradley–Terry models, section 2, says when a maximum exists.

    Args:
        rankings: two items or more in each.
        precision: of a normal prior of the worths with mean 0: the penalty is ½·precision·θ². With 0 there is
            none, and the comparisons must connect all items.

    Raises:
        InvalidInput: for a ranking of fewer than two items, and if no maximum exists: some items never lost
            to, or
            were never compared with, the others.
    """
    given = tuple(rankings)
    names, wins_NN = _wins(given)
    _check(names, wins_NN, precision)
    if not given:
        return {}
    games_NN = wins_NN + wins_NN.T

    def objective(worths_N: Floats) -> tuple[float, Floats, Floats]:
        gaps_NN = worths_N[:, None] - worths_N[None, :]
        likely_NN = _sigmoid(gaps_NN)
        value = -float((wins_NN * np.logaddexp(0.0, -gaps_NN)).sum())
        gradient_N = (wins_NN - games_NN * likely_NN).sum(axis=1)
        weight_NN = games_NN * likely_NN * likely_NN.T
        curvature_NN = np.diag(weight_NN.sum(axis=1)) - weight_NN
        return _with_prior(worths_N, value, gradient_N, curvature_NN, precision)

    return _named(names, maximum(objective, np.zeros(len(names))))


def plackett_luce(rankings: Iterable[Ranks], *, precision: float = 0.0) -> dict[str, float]:
    """Return the worths under which the rankings are most likely; their mean is 0.

    Plackett 1975, The analysis of permutations, equation 1; Hunter 2004, section 5. A ranking may be of some
    of the items. Tied items count as every order of them, each with the same share of one ranking: the mean
    of their log-likelihoods. For rankings of two that is half a win of each, as in `bradley_terry`.

    Args:
        rankings: two items or more in each.
        precision: as in `bradley_terry`.

    Raises:
        InvalidInput: as in `bradley_terry`, and for more than MAX_TIED tied items in one place.
    """
    given = tuple(rankings)
    names, wins_NN = _wins(given)
    _check(names, wins_NN, precision)
    if not given:
        return {}
    choices = _Choices(given, names)

    def objective(worths_N: Floats) -> tuple[float, Floats, Floats]:
        return _with_prior(worths_N, *choices.likelihood(worths_N), precision)

    return _named(names, maximum(objective, np.zeros(len(names))))


class _Choices:
    """Choices from sets of items, with weights: what rankings are to Plackett–Luce."""

    def __init__(self, rankings: Sequence[Ranks], names: Sequence[str]) -> None:
        index = {name: place for place, name in enumerate(names)}
        sets: dict[tuple[int, ...], float] = defaultdict(float)
        self._chosen_N = np.zeros(len(names))
        for ranks in rankings:
            places = _places(ranks, index)
            for number, tied in enumerate(places):
                rest = [item for place in places[number + 1 :] for item in place]
                # The last of all is not chosen from others: of tied ones, each is the last in an equal share.
                self._chosen_N[tied] += 1.0 if rest else 1 - 1 / len(tied)
                _add_choices(sets, tied, rest)
        size = max(map(len, sets))
        self._weight_S = np.array(list(sets.values()))
        self._given_SK = np.array([[place < len(found) for place in range(size)] for found in sets], np.bool_)
        self._items_SK = np.array([[*found, *[0] * (size - len(found))] for found in sets], np.int64)

    def likelihood(self, worths_N: Floats) -> tuple[float, Floats, Floats]:
        """Return the log-likelihood, its gradient and its negative Hessian."""
        count = len(worths_N)
        of_set_SK = np.where(self._given_SK, worths_N[self._items_SK], -np.inf)
        top_S = of_set_SK.max(axis=1, initial=-1e300)
        share_SK = np.exp(of_set_SK - top_S[:, None])
        sum_S = share_SK.sum(axis=1)
        share_SK /= sum_S[:, None]
        value = float(self._chosen_N @ worths_N - self._weight_S @ (top_S + np.log(sum_S)))
        weighted_SK = self._weight_S[:, None] * share_SK
        expected_N = np.bincount(self._items_SK.ravel(), weighted_SK.ravel(), minlength=count)
        products = weighted_SK[:, :, None] * share_SK[:, None, :]
        cells = self._items_SK[:, :, None] * count + self._items_SK[:, None, :]
        both_NN = np.bincount(cells.ravel(), products.ravel(), minlength=count * count)
        curvature_NN = np.diag(expected_N) - both_NN.reshape(count, count)
        return value, self._chosen_N - expected_N, curvature_NN.astype(np.float64)


def _add_choices(sets: dict[tuple[int, ...], float], tied: Sequence[int], rest: Sequence[int]) -> None:
    """Add the sets from which tied items are chosen one after the other, in the mean over their orders."""
    if len(tied) > MAX_TIED:
        raise InvalidInput(
            "rankings",
            got=f"{len(tied)} items tied in one place",
            allowed=f"at most {MAX_TIED}; bradley_terry has no limit",
        )
    for taken in range(len(tied)):
        left = len(tied) - taken
        if left + len(rest) == 1:
            continue
        weight = 1 / math.comb(len(tied), taken)
        for items in combinations(tied, left):
            sets[tuple(sorted((*items, *rest)))] += weight


def _places(ranks: Ranks, index: Mapping[str, int]) -> list[list[int]]:
    """Return the items of each place, best first."""
    found: dict[float, list[int]] = {}
    for name, rank in ranks.items():
        found.setdefault(rank, []).append(index[name])
    return [found[rank] for rank in sorted(found)]


def _wins(rankings: Iterable[Ranks]) -> tuple[list[str], Floats]:
    """Return the items in the order in which they occur, and [N, N]: how often each beat each."""
    index: dict[str, int] = {}
    wins: dict[tuple[int, int], float] = defaultdict(float)
    for number, ranks in enumerate(rankings):
        if len(ranks) < 2:
            raise InvalidInput("rankings", index=number, got=f"{len(ranks)} items", allowed="at least 2")
        for name in ranks:
            index.setdefault(name, len(index))
        for (one, rank), (other, other_rank) in combinations(ranks.items(), 2):
            first = 0.5 if rank == other_rank else float(rank < other_rank)
            wins[index[one], index[other]] += first
            wins[index[other], index[one]] += 1 - first
    wins_NN = np.zeros((len(index), len(index)))
    for cell, count in wins.items():
        wins_NN[cell] = count
    return list(index), wins_NN


def _check(names: Sequence[str], wins_NN: Floats, precision: float) -> None:
    """Refuse comparisons under which some worths are infinite or unrelated, unless a prior bounds them."""
    if not precision >= 0:
        raise InvalidInput("precision", got=precision, allowed="0 or more")
    if precision > 0 or len(names) < 2:
        return
    remedy = "; compare them, leave some out, or set a precision above 0"
    group = _reached((wins_NN + wins_NN.T) > 0)
    if not group.all():
        got = f"{_list(names, group)} never compared with {_list(names, ~group)}"
        raise InvalidInput("comparisons", got=got, allowed=f"comparisons that connect all items{remedy}")
    # What the first item cannot reach by wins never lost to what it reaches; what reaches it never lost to
    # the rest.
    for winners in (~_reached(wins_NN > 0), _reached(wins_NN.T > 0)):
        if winners.any() and not winners.all():
            got = f"{_list(names, winners)} that never lost to {_list(names, ~winners)}"
            allowed = f"a loss of each group of items to the others, or their gap is infinite{remedy}"
            raise InvalidInput("comparisons", got=got, allowed=allowed)


def _reached(edges_NN: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the items that a path of edges leads to from the first item, with itself."""
    reached_N = np.zeros(len(edges_NN), np.bool_)
    reached_N[0] = True
    while True:
        more_N = reached_N | edges_NN[reached_N].any(axis=0)
        if (more_N == reached_N).all():
            return reached_N
        reached_N = more_N


def _list(names: Sequence[str], chosen: NDArray[np.bool_]) -> str:
    found = [name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _with_prior(
    worths_N: Floats, value: float, gradient_N: Floats, curvature_NN: Floats, precision: float
) -> tuple[float, Floats, Floats]:
    """Add the prior, and a curvature along the one direction that no comparison measures: all worths
    together.
    """
    count = len(worths_N)
    curvature_NN = curvature_NN + precision * np.eye(count) + 1 / count
    return (
        value - 0.5 * precision * float(worths_N @ worths_N),
        gradient_N - precision * worths_N,
        curvature_NN,
    )


def _named(names: Sequence[str], worths_N: Floats) -> dict[str, float]:
    centred_N = worths_N - worths_N.mean()
    return {name: float(worth) for name, worth in zip(names, centred_N, strict=True)}


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -values)))
