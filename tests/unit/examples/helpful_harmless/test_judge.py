"""The head on features compared with scikit-learn, and on features with and without a signal."""

from __future__ import annotations

import numpy as np
import pytest

from examples.helpful_harmless import judge
from examples.helpful_harmless.judge import Array


def _pairs(count: int, *, signal: float, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    better, worse = rng.normal(size=(2, count, 8)) * np.arange(1, 9)
    better[:, 2] += signal * 3
    return better, worse


def test_head_equals_scikit_learns_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    better, worse = _pairs(200, signal=0.7, seed=1)
    scale = np.concatenate([better, worse]).std(axis=0)
    rows = np.concatenate([better - worse, worse - better]) / scale
    # Each pair is given in both orders, so the penalty counts twice.
    oracle = linear_model.LogisticRegression(C=1 / (2 * 30.0), fit_intercept=False, tol=1e-10, max_iter=5_000)
    oracle.fit(rows, [1] * len(better) + [0] * len(worse))
    found = judge.fit(better, worse, penalty=30.0)
    assert found.weights_F * scale == pytest.approx(oracle.coef_[0], abs=1e-4)


def test_judge_finds_the_feature_that_matters() -> None:
    critic = judge.fit(*_pairs(400, signal=1.0, seed=2))
    better, worse = _pairs(400, signal=1.0, seed=3)
    assert (critic.scores(better) > critic.scores(worse)).mean() > 0.7


def test_crossed_margins_of_noise_are_at_chance() -> None:
    margins = judge.crossed_margins(*_pairs(600, signal=0.0, seed=4), penalty=1.0, seed=0)
    assert 0.42 < (margins > 0).mean() < 0.58
    # A head is right more often than that on the pairs that it was fitted to.
    better, worse = _pairs(600, signal=0.0, seed=4)
    fitted = judge.fit(better, worse, penalty=1.0)
    assert (fitted.scores(better) > fitted.scores(worse)).mean() > (margins > 0).mean()


def test_features_that_never_differ_have_no_weight() -> None:
    better, worse = _pairs(50, signal=1.0, seed=5)
    better[:, 0] = worse[:, 0] = 4.0
    assert judge.fit(better, worse, penalty=1.0).weights_F[0] == 0.0
