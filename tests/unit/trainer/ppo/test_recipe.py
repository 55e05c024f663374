"""The optional parts of the recipe against hand-made tables and naive loops: clips, weights, β, scores."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest
import torch

from fairlead.config.training import PpoSection
from fairlead.errors import CorruptCheckpoint
from trainer.demonstrations import DemonstrationStream
from trainer.ppo import objective
from trainer.ppo.score_scale import ScoreScale
from trainer.sequences import TokenSequence

# ratio, advantage → loss, gradient flows; by hand for ε = 0.2, ε_high = 0.5, c = 3
CLIPS = [
    (1.4, 2.0, -2.8, True),  # beyond 1.2, within 1.5
    (1.6, 2.0, -3.0, False),  # beyond 1.5: clipped
    (0.7, -2.0, 1.6, False),  # below 0.8: clipped as usual
    (1.4, -2.0, 2.8, True),  # the ratio of a bad token is not clipped …
    (2.9, -2.0, 5.8, True),
    (3.5, -2.0, 6.0, False),  # … up to c
    (3.5, 2.0, -3.0, False),  # c is for bad tokens only
]


@pytest.mark.parametrize(("ratio", "advantage", "expected", "flows"), CLIPS)
def test_clip_higher_and_dual_clip_follow_the_table(ratio, advantage, expected, flows):
    logprob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    clips = {"clip_range": 0.2, "clip_range_high": 0.5, "dual_clip": 3.0}
    ratios_N = objective.ratios(logprob, torch.zeros(1, dtype=torch.float64))
    advantages_N = torch.tensor([advantage], dtype=torch.float64)
    found = objective.policy_loss(ratios_N, advantages_N, **clips)
    assert found.item() == pytest.approx(expected, abs=1e-12)
    found.sum().backward()
    assert logprob.grad.item() == pytest.approx(-ratio * advantage if flows else 0.0, abs=1e-12)
    assert bool(objective.is_clipped(ratios_N, advantages_N, **clips)) is not flows


# log π_behav, log π_prox, log π_θ, advantage → weight, loss; by hand for c = 2, ε = 0.2
DECOUPLED = [
    (math.log(0.4), math.log(0.4), math.log(0.4), 1.0, 1.0, -1.0),  # nothing moved: plain PPO
    (math.log(0.4), math.log(0.6), math.log(0.6), 1.0, 1.5, -1.5),  # off-policy: reweighted
    (math.log(0.1), math.log(0.6), math.log(0.6), 1.0, 2.0, -2.0),  # 6 is truncated to 2
    (math.log(0.6), math.log(0.3), math.log(0.3), 1.0, 0.5, -0.5),  # nothing cuts it from below
    (math.log(0.4), math.log(0.6), math.log(0.9), 1.0, 1.5, -1.8),  # the clip is around π_prox: 1.5 · 1.2
    (math.log(0.4), math.log(0.6), math.log(0.9), -1.0, 1.5, 2.25),  # 1.5 · 1.5
    (math.log(0.9), math.log(0.6), math.log(0.3), -1.0, 2 / 3, 0.8 * 2 / 3),
]


@pytest.mark.parametrize(("behaviour", "proximal", "current", "advantage", "weight", "expected"), DECOUPLED)
def test_decoupled_loss_follows_the_table(behaviour, proximal, current, advantage, weight, expected):
    """L = sg[min(π_prox/π_behav, c)] · −min(r·A, clip(r)·A), r = π_θ/π_prox."""
    behaviour_N, proximal_N, current_N = (
        torch.tensor([value], dtype=torch.float64, requires_grad=True)
        for value in (behaviour, proximal, current)
    )
    weights_N = objective.behaviour_weights(proximal_N, behaviour_N.detach(), limit=2.0)
    assert weights_N.item() == pytest.approx(weight, rel=1e-12)
    ratios_N = objective.ratios(current_N, proximal_N.detach())
    advantages_N = torch.tensor([advantage], dtype=torch.float64)
    found = weights_N * objective.policy_loss(ratios_N, advantages_N, clip_range=0.2)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    found.sum().backward()
    clipped = bool(objective.is_clipped(ratios_N, advantages_N, clip_range=0.2))
    ratio = math.exp(current - proximal)
    assert current_N.grad.item() == pytest.approx(0.0 if clipped else -weight * ratio * advantage, rel=1e-9)
    assert proximal_N.grad is None  # the weight's gradient is stopped


def test_behaviour_weights_of_equal_logprobs_are_exactly_one():
    logprobs = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(objective.behaviour_weights(logprobs, logprobs, limit=2.0), torch.ones(1000))


def test_kl_controller_matches_a_naive_loop_and_settles_at_the_target():
    draw = random.Random(5)
    coefficient, expected = 0.1, 0.1
    for _ in range(200):
        divergence, episodes = draw.uniform(-2, 20), draw.choice([64, 256])
        coefficient = objective.adapted_coefficient(
            coefficient, divergence=divergence, target=6.0, horizon=10_000, episodes=episodes
        )
        error = divergence / 6.0 - 1
        error = min(error, 0.2)
        error = max(error, -0.2)
        expected *= 1 + error * episodes / 10_000
        assert coefficient == pytest.approx(expected, rel=1e-12)
    at_target = objective.adapted_coefficient(0.3, divergence=6.0, target=6.0, horizon=10, episodes=9)
    assert at_target == 0.3
    # By hand: far above and far below the target, β changes by at most 0.2 · 256/10000.
    far = {"target": 6.0, "horizon": 10_000.0, "episodes": 256}
    assert objective.adapted_coefficient(1.0, divergence=600.0, **far) == pytest.approx(1.00512)
    assert objective.adapted_coefficient(1.0, divergence=-600.0, **far) == pytest.approx(0.99488)
    # A policy whose divergence falls as 1/β reaches the target.
    for _ in range(3_000):
        coefficient = objective.adapted_coefficient(
            coefficient, divergence=0.9 / coefficient, target=6.0, horizon=10_000, episodes=256
        )
    assert 0.9 / coefficient == pytest.approx(6.0, rel=1e-3)


def test_score_scale_does_not_depend_on_how_scores_are_split():
    draw = random.Random(1)
    scores = [draw.gauss(3.0, 2.5) for _ in range(500)]
    scale = ScoreScale()
    for start, end in ((0, 1), (1, 200), (200, 200), (200, 500)):
        scale = scale.updated(scores[start:end])
    assert scale.count == 500
    assert scale.mean == pytest.approx(statistics.fmean(scores), rel=1e-12)
    assert scale.deviation == pytest.approx(statistics.pstdev(scores), rel=1e-12)
    assert ScoreScale.from_json(json.loads(json.dumps(scale.to_json()))) == scale  # bit for bit
    assert ScoreScale().deviation == 0.0
    with pytest.raises(CorruptCheckpoint, match="score_scale"):
        ScoreScale.from_json({"count": 3})


def test_scores_are_normalised_then_clipped_then_penalised():
    scores_B = torch.tensor([4.0, 2.0, 20.0, 4.0])
    cut_off_B = torch.tensor([False, False, False, True])
    scale = ScoreScale(count=10, mean=2.0, squares=40.0)  # deviation 2
    section = PpoSection(score_clip=3.0, missing_eos_penalty=0.5)
    plain = objective.shaped_scores(scores_B, cut_off_B, section, scale)
    assert plain.tolist() == [3.0, 2.0, 3.0, 2.5]
    section = PpoSection(score_clip=3.0, missing_eos_penalty=0.5, normalise_scores=True)
    found = objective.shaped_scores(scores_B, cut_off_B, section, scale)
    assert found.tolist() == pytest.approx([1.0, 0.0, 3.0, 0.5], abs=1e-6)


def test_demonstration_stream_continues_from_its_cursor():
    sequences = [TokenSequence((1, number), 1) for number in range(7)]
    stream = DemonstrationStream(sequences, seed=3)
    drawn = [one for _ in range(7) for one in stream.take(3)]
    assert stream.cursor == 21
    for epoch in range(3):
        assert sorted(one.token_ids for one in drawn[7 * epoch : 7 * epoch + 7]) == [
            one.token_ids for one in sequences
        ]
    assert drawn[:7] != drawn[7:14]
    resumed = DemonstrationStream(sequences, seed=3)
    resumed.cursor = 9
    assert resumed.take(12) == drawn[9:]
    assert DemonstrationStream(sequences, seed=4).take(21) != drawn
