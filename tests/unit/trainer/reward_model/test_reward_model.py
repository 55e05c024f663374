"""The reward model: its loss, K responses once each, calibration computed by hand, the whole stage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fairlead.config.base import ComputeSection
from fairlead.data.records import Preference
from fairlead.judgments.calibration import accuracy, expected_calibration_error
from fairlead.judgments.shares import wilson_interval
from fairlead.nn.reward_model import load_reward_model
from tests.tiny import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from tests.unit.trainer.stage_world import reward_model_run
from trainer import calibration
from trainer import rankings as data
from trainer.reward_model import loss
from trainer.reward_model.evaluate import evaluate
from trainer.reward_model.train import train


def test_loss_is_ln_2_for_equal_scores_and_less_for_the_right_order():
    pairs = [(0, 1)]
    assert float(loss.ranking_loss(torch.tensor([1.5, 1.5]), pairs)) == pytest.approx(math.log(2))
    assert 0 < float(loss.ranking_loss(torch.tensor([2.0, 1.0]), pairs)) < math.log(2)
    wrong = float(loss.ranking_loss(torch.tensor([0.0, 50.0]), pairs))
    assert wrong == pytest.approx(50.0, abs=1e-4)


def test_loss_of_a_ranking_is_the_mean_over_its_pairs():
    scores = torch.tensor([0.3, -1.0, 2.0, 0.0])
    pairs = list(itertools.combinations(range(4), 2))
    expected = sum(-math.log(1 / (1 + math.exp(-float(scores[i] - scores[j])))) for i, j in pairs) / 6
    assert float(loss.ranking_loss(scores, pairs)) == pytest.approx(expected, abs=1e-6)


def ranked(prompt: str, *responses: str) -> list[Preference]:
    return [Preference(prompt, *pair) for pair in itertools.combinations(responses, 2)]


def test_elements_join_pairs_of_one_ranking():
    first = ranked("w1", "w2", "w3 w3", "w4", "w5 w5 w5")
    second = ranked("w1", "w6", "w7")  # the same prompt with other answers is another ranking
    third = ranked("w9", "w6", "w7")
    encoded = data.encode([*first, *second, *third], tiny_tokenizer(), max_tokens=100)
    rankings = encoded.rankings
    assert [len(ranking.sequences) for ranking in rankings] == [4, 2, 2]
    assert [len(ranking.pairs) for ranking in rankings] == [6, 1, 1]
    assert rankings[0].pairs == tuple(itertools.combinations(range(4), 2))
    assert rankings[0].sequences[1] == (1, 5, 7, 7, 2)
    assert (encoded.truncated, encoded.ties, encoded.skipped) == (0, 0, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny_reward_model(tmp_path_factory.mktemp("rm"))
    found = load_reward_model(str(path), ComputeSection(device="cpu"))
    found.model.double()
    found.head.double()
    return found


RANKINGS = data.encode(
    [
        *ranked("w1 w2", "w3", "w4 w5 w6 w7", "w8"),
        *ranked("", "w9", "w10 w11"),
        *ranked("w12 w13 w14 w15", "w16", "w17"),
        *ranked("w20", "w21 w22 w23", "w24"),
    ],
    tiny_tokenizer(),
    max_tokens=100,
).rankings


@pytest.mark.parametrize("max_tokens", [1, 20, 30])
def test_gradient_does_not_depend_on_micro_batches(model, max_tokens):
    def gradient(budget: int) -> torch.Tensor:
        model.model.zero_grad()
        model.head.zero_grad()
        for part in loss.micro_batch_losses(model, RANKINGS, max_tokens=budget):
            part.backward()
        # The bias adds the same to every score, so its gradient is zero up to rounding.
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    assert len(list(data.pack(RANKINGS, max_tokens=max_tokens))) > 1
    whole = gradient(1000)
    assert whole.abs().max() > 1e-3
    assert torch.allclose(gradient(max_tokens), whole, rtol=1e-6, atol=1e-9)


def test_scores_do_not_depend_on_the_batch(model):
    with torch.no_grad():
        together = torch.cat(loss.forward(model, RANKINGS))
        single = [
            float(model.scores(torch.tensor([sequence]), torch.tensor([len(sequence)])))
            for ranking in RANKINGS
            for sequence in ranking.sequences
        ]
    assert together.tolist() == pytest.approx(single, abs=1e-9)


def test_accuracy_interval_and_calibration_by_hand():
    assert accuracy([1.0, -1.0, 0.0, 2.0]) == pytest.approx(0.625)
    assert wilson_interval(0.8, 100) == pytest.approx((0.7112, 0.8666), abs=1e-4)
    assert wilson_interval(1.0, 33)[1] == pytest.approx(1.0)
    logit = math.log(0.83 / 0.17)
    # 100 pairs at a confidence of 0.83 of which 70 are right: the error is 0.13, in one bin
    assert expected_calibration_error([logit] * 70 + [-logit] * 30) == pytest.approx(0.13)
    # together with 100 at 0.97, all correct: (0.13 + 0.03) / 2
    sure = math.log(0.97 / 0.03)
    margins = [logit] * 70 + [-logit] * 30 + [sure] * 100
    assert expected_calibration_error(margins) == pytest.approx(0.08)
    assert math.isnan(expected_calibration_error([]))


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0, 40.0])
def test_fit_temperature_recovers_the_true_temperature(temperature):
    """Winners drawn from σ(margin / T): T is recovered, and it reduces the calibration error."""
    rng = np.random.default_rng(7)
    margins_P = rng.normal(0, 2 * temperature, size=20_000)
    wins_P = rng.random(20_000) < 1 / (1 + np.exp(-margins_P / temperature))
    seen = np.where(wins_P, margins_P, -margins_P)
    assert calibration.fit_temperature(seen.tolist()) == pytest.approx(temperature, rel=0.05)
    by_prompt = {str(place): seen[place : place + 4].tolist() for place in range(0, 20_000, 4)}
    mended = calibration.calibrated_error(by_prompt)
    assert mended < 0.015
    if temperature != 1.0:
        assert expected_calibration_error(seen.tolist()) > 5 * mended


def test_fit_temperature_minimises_the_loss():
    margins = np.random.default_rng(3).normal(0.7, 2.0, size=300)
    found = calibration.fit_temperature(margins.tolist())
    losses = {t: np.logaddexp(0, -margins / t).mean() for t in np.geomspace(0.01, 100, 20_001)}
    assert found == pytest.approx(min(losses, key=losses.__getitem__), rel=1e-3)


@pytest.mark.parametrize(
    "margins",
    [[1.0, -0.5] * 14, [0.0] * 100, [1.0] * 100, [1.0, 0.0] * 50, [-1.0, 0.5] * 50, [1.0, float("nan")] * 50],
    ids=["few", "equal", "never wrong", "never wrong, some equal", "more often wrong", "not finite"],
)
def test_fit_temperature_returns_none_without_a_solution(margins):
    assert calibration.fit_temperature(margins) is None
    assert math.isnan(calibration.calibrated_error({"all": margins}))


def test_stage_generalises_to_unseen_prompts_and_writes_a_model(tmp_path):
    config = reward_model_run(tmp_path, comparisons=200)
    tiny_causal_lm(config.folder.sft_model)
    result = train(config)
    assert result["accuracy"] > 0.95
    assert result["loss"] < 0.3
    low, high = result["accuracy_interval"]
    assert low < result["accuracy"] <= high
    assert result["comparisons"] + result["heldout_comparisons"] == 200
    saved = load_reward_model(str(config.folder.reward_model), ComputeSection(device="cpu"))
    rankings = data.encode(
        [Preference("w55", "w41 w50", "w44 w51"), Preference("w54", "w46 w50", "w41 w51")],
        tiny_tokenizer(),
        max_tokens=64,
    ).rankings
    assert evaluate(saved, rankings, max_tokens=100)["accuracy"] == 1.0
