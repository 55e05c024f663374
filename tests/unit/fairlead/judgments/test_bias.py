"""Position and length bias against scipy, scikit-learn and labelers that have them."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.stats import chi2, chisquare
from sklearn.linear_model import LogisticRegression

from fairlead.judgments import Judgment, length_bias, position_bias
from fairlead.judgments.bias import chi_square_tail


def shown_by(rng: random.Random, *, size: int, favour_first: float) -> Judgment:
    """Return the judgment of a labeler that prefers the answer shown first with some probability."""
    names = [f"answer {number}" for number in range(size)]
    shown = rng.sample(names, size)
    best = shown[0] if rng.random() < favour_first else rng.choice(names)
    ranks = {name: 1.0 if name == best else 2.0 for name in names}
    return Judgment(str(rng.random()), "anna", ranks, shown=tuple(shown))


def test_chi_square_tail_equals_scipy():
    for degrees in (*range(1, 12), 60, 301):
        for value in (0.0, 1e-6, 0.3, 1.0, degrees * 0.9, degrees * 1.5, 50.0, 700.0, 5000.0):
            expected = chi2.sf(value, degrees)
            assert chi_square_tail(value, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_position_bias_counts_first_places_by_position():
    rng = random.Random(2)
    four = [shown_by(rng, size=4, favour_first=0.0) for _ in range(300)]
    found = position_bias(four)
    counts = [sum(one.best == (one.shown[place],) for one in four) for place in range(4)]
    expected = chisquare(counts)
    assert found.first_places == {4: tuple(counts)}
    assert (found.judgments, found.degrees, found.tied) == (300, 3, 0)
    assert found.chi_square == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    # Two sizes add up; a tied first place and an unknown order do not count.
    pairs = [shown_by(rng, size=2, favour_first=0.2) for _ in range(800)]
    tied = Judgment("1", "anna", {"a": 1.0, "b": 1.0}, shown=("a", "b"))
    both = position_bias([*four, *pairs, tied, Judgment("2", "anna", {"a": 1.0, "b": 2.0})])
    assert (both.judgments, both.tied, both.degrees, sorted(both.first_places)) == (1100, 1, 4, [2, 4])
    assert both.p_value is not None
    assert both.p_value < 1e-3
    assert position_bias([]).p_value is None
    assert position_bias([tied]).as_json()["first_places"] == {}


def test_position_bias_has_uniform_p_values_without_a_bias():
    values = []
    for seed in range(150):
        rng = random.Random(seed)
        values.append(
            position_bias([shown_by(rng, size=3, favour_first=0.0) for _ in range(60)]).p_value or 0
        )
    assert np.mean(np.array(values) < 0.05) < 0.11
    assert 0.4 < np.mean(values) < 0.6


def test_length_bias_equals_a_logistic_regression():
    rng = np.random.default_rng(4)
    judgments, signs, ratios = [], [], []
    for task in range(300):
        lengths = rng.integers(0, 400, size=3)
        noisy = 0.8 * np.log1p(lengths) + rng.gumbel(size=3)
        ranks = {name: round(-value) for name, value in zip("abc", noisy, strict=True)}
        sizes = {name: int(length) for name, length in zip("abc", lengths, strict=True)}
        judgments.append(Judgment(str(task), "anna", ranks, lengths=sizes))
        for one, other in ("ab", "ac", "bc"):
            if ranks[one] != ranks[other] and sizes[one] != sizes[other]:
                signs.append(ranks[one] < ranks[other])
                ratios.append(math.log1p(sizes[one]) - math.log1p(sizes[other]))
    found = length_bias(judgments, seed=0)
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(np.c_[ratios], signs)
    assert found.slope == pytest.approx(fitted.coef_[0, 0], abs=1e-6)
    assert (found.compared, found.longer_wins) == (
        len(signs),
        pytest.approx(np.mean(np.array(signs) == (np.array(ratios) > 0))),
    )
    assert found.interval is not None
    assert found.longer_wins is not None
    assert found.interval[0] < found.longer_wins < found.interval[1]


def test_length_bias_of_labelers_that_see_only_length():
    lengths = {"a": 10, "b": 20}
    longer = [Judgment(str(task), "anna", {"a": 2.0, "b": 1.0}, lengths=lengths) for task in range(3)]
    found = length_bias(longer, seed=0)
    assert (found.longer_wins, found.interval, found.slope, found.compared) == (1.0, (1.0, 1.0), math.inf, 3)
    assert found.as_json()["slope"] is None
    shorter = length_bias([Judgment("1", "anna", {"a": 1.0, "b": 2.0}, lengths=lengths)], seed=0)
    assert (shorter.longer_wins, shorter.interval, shorter.slope) == (0.0, None, -math.inf)
    unknown = length_bias([Judgment("1", "anna", {"a": 1.0, "b": 2.0})], seed=0)
    assert (unknown.longer_wins, unknown.slope, unknown.compared) == (None, None, 0)
