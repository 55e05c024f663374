"""Bradley–Terry and Plackett–Luce against choix, evalica and each other, and the comparisons they refuse."""

from __future__ import annotations

import itertools
import math
import random

import choix
import evalica
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import InvalidInput
from fairlead.judgments import bradley_terry, plackett_luce

ITEMS = "abcdef"
ABC = {"a": 1.0, "b": 2.0, "c": 3.0}
CBA = {"a": 3.0, "b": 2.0, "c": 1.0}


def rankings(seed: int, *, count: int, size: int) -> list[dict[str, float]]:
    """Return rankings of some of the items, with ties; a ring of wins connects all items."""
    rng = random.Random(seed)
    found = [dict.fromkeys(rng.sample(ITEMS, size), 1.0) for _ in range(count)]
    found = [{item: float(rng.randint(1, size)) for item in ranks} for ranks in found]
    return found + [{one: 1.0, other: 2.0} for one, other in zip(ITEMS, ITEMS[1:] + ITEMS[0], strict=True)]


def orders(ranks: dict[str, float]) -> list[list[int]]:
    """Return every order of tied items, as indices, best first."""
    places = [[item for item in ranks if ranks[item] == rank] for rank in sorted(set(ranks.values()))]
    every = itertools.product(*map(itertools.permutations, places))
    return [[ITEMS.index(item) for item in itertools.chain(*order)] for order in every]


def values(worths: dict[str, float]) -> list[float]:
    return [worths[item] for item in ITEMS]


@pytest.mark.parametrize("seed", range(3))
def test_worths_equal_those_of_choix_and_evalica(seed: int):
    given_rankings = rankings(seed, count=40, size=3)
    found = bradley_terry(given_rankings)
    # A tie is one win of each and a win is two, which is the same as half a win and one.
    pairs, played = [], []
    for ranks in given_rankings:
        for (one, rank), (other, other_rank) in itertools.combinations(ranks.items(), 2):
            played.append((one, other, float(np.sign(other_rank - rank))))
            wins = [(one, other)] * (rank <= other_rank) + [(other, one)] * (other_rank <= rank)
            pairs += [(ITEMS.index(a), ITEMS.index(b)) for a, b in (wins * 2 if len(wins) == 1 else wins)]
    expected = choix.ilsr_pairwise(len(ITEMS), pairs, alpha=0.0, tol=1e-12, max_iter=1000)
    assert values(found) == pytest.approx(expected, abs=1e-6)
    winners = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Draw, -1.0: evalica.Winner.Y}
    scores = evalica.bradley_terry(
        [one for one, _, _ in played],
        [other for _, other, _ in played],
        [winners[sign] for _, _, sign in played],
        tolerance=1e-12,
        limit=10_000,
    ).scores
    assert values(found) == pytest.approx([math.log(scores[item]) for item in ITEMS], abs=1e-6)
    # With a prior: choix penalises by alpha·θ², and its pairs are twice as many.
    with_prior = choix.opt_pairwise(len(ITEMS), pairs, alpha=0.7, tol=1e-12)
    assert values(bradley_terry(given_rankings, precision=0.7)) == pytest.approx(with_prior, abs=1e-6)


def test_plackett_luce_equals_choix_over_every_order_of_ties():
    given_rankings = [*rankings(0, count=6, size=3), {"a": 1.0, "b": 2.0, "c": 2.0, "d": 2.0}]
    most = math.factorial(3)
    every = [order for ranks in given_rankings for order in orders(ranks) * (most // len(orders(ranks)))]
    expected = choix.ilsr_rankings(len(ITEMS), every, alpha=0.0, tol=1e-12, max_iter=1000)
    assert values(plackett_luce(given_rankings)) == pytest.approx(expected, abs=1e-6)


@given(seed=st.integers(0, 10**6), precision=st.sampled_from([0.0, 0.5]))
@settings(max_examples=10, deadline=None)
def test_both_models_are_equal_for_rankings_of_two(seed: int, precision: float):
    pairs = rankings(seed, count=15, size=2)
    found, other = bradley_terry(pairs, precision=precision), plackett_luce(pairs, precision=precision)
    assert values(found) == pytest.approx(values(other), abs=1e-9)
    assert sum(found.values()) == pytest.approx(0, abs=1e-9)


def test_plackett_luce_recovers_the_worths_that_rankings_were_drawn_from():
    rng = np.random.default_rng(0)
    truth = np.array([1.0, 0.5, 0.0, -0.2, -0.4, -0.9])
    noisy = truth + rng.gumbel(size=(6000, 6))
    drawn = [{ITEMS[i]: float(-row[i]) for i in rng.choice(6, size=4, replace=False)} for row in noisy]
    assert values(plackett_luce(drawn)) == pytest.approx(truth, abs=0.06)


def test_two_items_have_the_log_odds_of_their_wins():
    wins = [{"a": 1.0, "b": 2.0}] * 3 + [{"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.0}]
    for fit in (bradley_terry, plackett_luce):
        found = fit(wins)
        assert found["a"] - found["b"] == pytest.approx(math.log(3.5 / 1.5), abs=1e-12)
        assert fit([]) == {}
        one_sided = fit([{"a": 1.0, "b": 2.0}] * 50, precision=1.0)
        assert 1 < one_sided["a"] < 10
        far = fit([{"a": 1.0, "b": 2.0}] * 10**4 + [{"a": 2.0, "b": 1.0}])
        assert far["a"] - far["b"] == pytest.approx(math.log(10**4), abs=1e-6)


def test_comparisons_without_a_maximum_are_refused():
    apart = [ABC, CBA, {"d": 1.0, "e": 1.0}]
    best = [ABC, CBA, {"d": 1.0, "a": 2.0}]
    worst = [{"a": 1.0, "d": 2.0}, ABC, CBA]
    many = [{name: float(place) for place, name in enumerate("tuvwxyz")}]
    for fit in (bradley_terry, plackett_luce):
        for given_rankings, message in (
            (apart, "comparisons: got 'a, b, c never compared with d, e', allowed: comparisons that connect"),
            (best, "comparisons: got 'd that never lost to a, b, c', allowed: a loss of each group"),
            (worst, "comparisons: got 'a, b, c that never lost to d', allowed"),
            (many, "got 't that never lost to u, v, w and 3 more'"),
            ([{"a": 1.0}], r"rankings\[0\]: got '1 items', allowed: at least 2"),
        ):
            with pytest.raises(InvalidInput, match=message):
                fit(given_rankings)
        with pytest.raises(InvalidInput, match="precision: got -1"):
            fit([ABC], precision=-1)
        assert set(fit(apart, precision=0.1)) == set("abcde")
    with pytest.raises(InvalidInput, match="got '13 items tied in one place', allowed: at most 12"):
        plackett_luce([dict.fromkeys("abcdefghijklm", 1.0)])
