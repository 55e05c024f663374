"""Best-of-n against all subsets, and win rates with their intervals against closed forms."""

from __future__ import annotations

import itertools
import math
import random
from statistics import fmean

import pytest

from fairlead.clients.best_of_n import divergence, expected_best, sizes
from fairlead.clients.win_rate import by_group, mean_interval, win_rate


def test_best_of_n_equals_the_mean_over_all_subsets():
    random.seed(3)
    scores = [1.0, 2.0, 2.0, -1.0, 5.0, 2.0, 0.0]
    gold = [random.gauss(0, 1) for _ in scores]
    for n in range(1, len(scores) + 1):
        subsets = list(itertools.combinations(range(len(scores)), n))
        best = [max(scores[i] for i in subset) for subset in subsets]
        assert expected_best(scores, n) == pytest.approx(fmean(best))
        # Equal scores share their places: the mean over every order of ties.
        of_best = [
            fmean(gold[i] for i in subset if scores[i] == max(scores[j] for j in subset))
            for subset in subsets
        ]
        assert expected_best(scores, n, gold) == pytest.approx(fmean(of_best))
    assert divergence(1) == 0
    assert divergence(4) == pytest.approx(math.log(4) - 0.75)
    assert sizes(1) == [1]
    assert sizes(12) == [1, 2, 4, 8, 12]


def test_win_rate_counts_ties_half_and_resamples_prompts():
    verdicts = [[1.0, 0.5], [0.0], [1.0], [0.5]] * 50
    found = win_rate(verdicts, seed=0)
    assert found.rate == pytest.approx((0.75 + 0 + 1 + 0.5) / 4)
    assert (found.wins, found.ties, found.losses, found.prompts) == (100, 100, 50, 200)
    # The standard error of the mean over prompts.
    means = [fmean(own) for own in verdicts]
    error = math.sqrt(fmean((mean - found.rate) ** 2 for mean in means) / len(means))
    low, high = found.interval
    assert low == pytest.approx(found.rate - 1.96 * error, abs=0.01)
    assert high == pytest.approx(found.rate + 1.96 * error, abs=0.01)
    assert mean_interval([0.25], seed=1) == (0.25, 0.25)
    for verdict, wide in ((1.0, (0.722, 1.0)), (0.5, (0.237, 0.763))):  # equal prompts: Wilson's of 10
        assert win_rate([[verdict]] * 10, seed=0).interval == pytest.approx(wide, abs=0.001)
    assert win_rate([[1.0, 1.0]], seed=0).interval == pytest.approx((0.207, 1.0), abs=0.001)
    groups = by_group(verdicts, ["a", "b", "a", "b"] * 50, seed=0)
    assert {name: rate.rate for name, rate in groups.items()} == {"a": 0.875, "b": 0.25}
