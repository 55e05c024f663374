"""Intervals against resampling in one draw, and how often they cover the truth."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fairlead.judgments import resampling
from fairlead.judgments.resampling import mean_interval, ratio_interval


def test_interval_does_not_depend_on_the_memory_that_is_used(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(1)
    right_G, count_G = rng.integers(0, 5, size=37), rng.integers(5, 9, size=37)
    drawn = np.random.default_rng(7).integers(37, size=(1000, 37))
    expected = np.quantile(right_G[drawn].sum(axis=1) / count_G[drawn].sum(axis=1), [0.025, 0.975])
    assert ratio_interval(right_G, count_G, seed=7) == pytest.approx(tuple(expected), abs=1e-12)
    monkeypatch.setattr(resampling, "_GATHERED", 500)
    assert ratio_interval(right_G, count_G, seed=7) == pytest.approx(tuple(expected), abs=1e-12)
    # Resamples without a trial say nothing.
    assert ratio_interval([1, 0], [1, 0], seed=0) == (1.0, 1.0)


def test_mean_interval_covers_the_mean_in_95_percent_of_cases():
    rng = random.Random(2)
    intervals = [mean_interval([rng.gauss(1, 1) for _ in range(60)], seed=trial) for trial in range(100)]
    assert sum(low <= 1 <= high for low, high in intervals) >= 88
