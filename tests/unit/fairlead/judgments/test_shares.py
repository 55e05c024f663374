"""Intervals of shares: values by hand, and how often they contain the truth."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.judgments.shares import paired_interval, wilson_interval


def _pairs(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    rows = (
        [(True, True)] * both
        + [(True, False)] * first
        + [(False, True)] * second
        + [(False, False)] * neither
    )
    return [one for one, _ in rows], [other for _, other in rows]


def test_wilson_interval_by_hand():
    assert wilson_interval(0.8, 100) == pytest.approx((0.7112, 0.8666), abs=1e-4)
    assert wilson_interval(0.5, 0) == (0.0, 1.0)


def test_paired_interval_equals_newcombes_method_10_by_hand():
    # p1 = 0.9, p2 = 0.725; ad − bc = 28·3 − 8·1 = 76 > 0, less n/2 = 20: 56; √(36·4·29·11) = 214.327
    (l1, u1), (l2, u2) = wilson_interval(0.9, 40), wilson_interval(0.725, 40)
    phi = 56 / 214.3268
    low = 0.175 - ((0.9 - l1) ** 2 - 2 * phi * (0.9 - l1) * (u2 - 0.725) + (u2 - 0.725) ** 2) ** 0.5
    high = 0.175 + ((u1 - 0.9) ** 2 - 2 * phi * (u1 - 0.9) * (0.725 - l2) + (0.725 - l2) ** 2) ** 0.5
    assert paired_interval(*_pairs(28, 8, 1, 3)) == pytest.approx((low, high), abs=1e-5)
    one, other = _pairs(28, 8, 1, 3)
    assert paired_interval(other, one) == pytest.approx((-high, -low), abs=1e-5)


def test_paired_interval_has_a_width_where_no_pair_differs():
    low, high = paired_interval(*_pairs(10, 0, 0, 10))
    assert low == pytest.approx(-high)
    assert 0.05 < high < 0.3
    assert paired_interval([], []) == (-1.0, 1.0)


@pytest.mark.parametrize("shares", [(0.5, 0.2, 0.1, 0.2), (0.02, 0.1, 0.02, 0.86), (0.9, 0.05, 0.05, 0.0)])
def test_paired_interval_contains_the_difference_19_times_in_20(shares: tuple[float, ...]):
    generator = np.random.default_rng(1)
    truth = shares[1] - shares[2]
    draws = generator.multinomial(60, shares, size=1_500)
    intervals = [paired_interval(*_pairs(*map(int, draw))) for draw in draws]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.995
