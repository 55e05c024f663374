"""Advantages, KL estimators and losses against naive loops, hand-computed tables and closed forms."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fairlead.config.training import PpoSection, SftSection
from trainer import optim
from trainer.ppo import objective
from trainer.seeds import derive, permutation


def naive_gae(rewards: list[float], values: list[float], gamma: float, lam: float):
    """The definition: A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γV_{t+1} − V_t, with V = 0 after the end."""
    length = len(rewards)
    deltas = [
        rewards[t] + gamma * (values[t + 1] if t + 1 < length else 0.0) - values[t] for t in range(length)
    ]
    found = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]
    return found, [advantage + value for advantage, value in zip(found, values, strict=True)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_matches_its_definition_for_any_padding(gamma, lam):
    draw = random.Random(3)
    lengths = [5, 1, 3, 7]
    width = max(lengths)
    rewards = [[draw.gauss(0, 1) for _ in range(width)] for _ in lengths]
    values = [[draw.gauss(0, 1) for _ in range(width)] for _ in lengths]  # junk in the padding on purpose
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    found, returns = objective.gae(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(values, dtype=torch.float64),
        mask,
        gamma=gamma,
        lam=lam,
    )
    for row, length in enumerate(lengths):
        expected, expected_returns = naive_gae(rewards[row][:length], values[row][:length], gamma, lam)
        assert found[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
        assert returns[row, :length].tolist() == pytest.approx(expected_returns, abs=1e-12)
        assert not found[row, length:].any()
        assert not returns[row, length:].any()


def test_whitening_uses_the_biased_variance_and_may_keep_the_mean():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    # mean 3, biased variance (4 + 1 + 0 + 9) / 4 = 3.5
    expected = [(value - 3) / math.sqrt(3.5 + 1e-8) for value in (1, 2, 3, 6)]
    assert objective.whiten(values).tolist() == pytest.approx(expected, abs=1e-12)
    kept = [value + 3 for value in expected]
    assert objective.whiten(values, shift_mean=False).tolist() == pytest.approx(kept, abs=1e-12)
    assert objective.whiten(torch.full((4,), 2.0)).tolist() == [0.0] * 4


def test_estimators_agree_with_the_exact_divergence():
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    exact = float((policy * (policy / reference).log()).sum())
    logs = policy.log(), reference.log()
    assert float((policy * objective.k1(*logs)).sum()) == pytest.approx(exact, abs=1e-12)
    assert float((policy * objective.k3(*logs)).sum()) == pytest.approx(exact, abs=1e-12)
    assert (objective.k3(*logs) >= 0).all()
    assert objective.k2(*logs).tolist() == pytest.approx(
        [math.log(2.5) ** 2 / 2, 0.0, math.log(2.5) ** 2 / 2]
    )
    far = torch.tensor([-200.0]), torch.tensor([0.0])
    assert torch.isfinite(objective.k3(*far)).all()


def test_one_token_is_charged_at_most_ten_nats_by_k2_and_k3():
    reference_N = torch.tensor([-1.0, -3.0, -5.5, -9.0, -200.0, -1.0, -1.0], dtype=torch.float64)
    logprobs_N = torch.tensor([-1.0, -2.0, -1.0, -1.0, -1.0, -3.0, -200.0], dtype=torch.float64)
    apart_N = logprobs_N - reference_N
    by_hand = {
        "k1": apart_N.tolist(),
        "k2": [min(d * d / 2, 10.0) for d in apart_N.tolist()],
        "k3": [min(math.expm1(min(-d, 50.0)) + d, 10.0) for d in apart_N.tolist()],
    }
    for name, expected in by_hand.items():
        found = objective.penalty_kl(logprobs_N, reference_N, estimator=name)
        # The log-ratio of k3 is limited to 20, which matters only where the charge is above the limit.
        assert found.tolist() == pytest.approx(expected, abs=1e-9), name
    assert by_hand["k2"][3:5] == [10.0, 10.0]
    assert by_hand["k3"][6] == 10.0


def test_penalised_rewards_put_the_score_on_the_last_token():
    kl_BT = torch.tensor([[0.1, 0.2, 0.0], [0.3, -0.4, 0.5]])
    rewards = objective.penalised_rewards(
        kl_BT, torch.tensor([2.0, -1.0]), torch.tensor([2, 3]), coefficient=0.5
    )
    assert torch.allclose(rewards, torch.tensor([[-0.05, 1.9, 0.0], [-0.15, 0.2, -1.25]]))


# ratio, advantage → loss, is clipped; computed by hand for ε = 0.2
TABLE = [
    (1.0, 2.0, -2.0, False),
    (1.5, 2.0, -2.4, True),
    (0.5, 2.0, -1.0, False),
    (1.5, -2.0, 3.0, False),
    (0.5, -2.0, 1.6, True),
    (1.1, -1.0, 1.1, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "expected", "clipped"), TABLE)
def test_policy_loss_and_its_gradient_follow_the_table(ratio, advantage, expected, clipped):
    logprob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    ratios = objective.ratios(logprob, torch.zeros(1, dtype=torch.float64))
    advantages_N = torch.tensor([advantage], dtype=torch.float64)
    found = objective.policy_loss(ratios, advantages_N, clip_range=0.2)
    assert found.item() == pytest.approx(expected, abs=1e-12)
    assert bool(objective.is_clipped(ratios, advantages_N, clip_range=0.2)) is clipped
    found.sum().backward()
    assert logprob.grad.item() == pytest.approx(0.0 if clipped else -ratio * advantage, abs=1e-12)


def test_log_ratios_are_clamped_before_exp():
    ratios = objective.ratios(torch.tensor([500.0, -500.0]), torch.zeros(2))
    assert ratios.tolist() == pytest.approx([math.exp(20), math.exp(-20)], rel=1e-5)


# value, old value, return → loss; clip width 0.5
VALUES = [
    (1.0, 1.0, 2.0, 0.5),  # unchanged: ½·1²
    (1.4, 1.0, 2.0, 0.18),  # inside the clip: ½·0.6²
    (2.0, 1.0, 2.0, 0.125),  # beyond it towards the return: the clipped one, ½·0.5²
    (0.0, 1.0, 2.0, 2.0),  # beyond it away from the return: the unclipped one, ½·2²
]


@pytest.mark.parametrize(("value", "old", "target", "expected"), VALUES)
def test_value_loss_follows_the_table(value, old, target, expected):
    found = objective.value_loss(
        torch.tensor([value]), torch.tensor([old]), torch.tensor([target]), clip_width=0.5
    )
    assert found.item() == pytest.approx(expected, abs=1e-6)


FALLING = {
    "linear": [1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0],
    # (1 + cos(π/8 · k)) / 2, by the half-angle formulas.
    "cosine": [1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060, 0],
    "constant": [1.0] * 9,
}


@pytest.mark.parametrize("schedule", FALLING)
def test_schedules_count_steps(schedule):
    expected = [1 / 3, 2 / 3, *FALLING[schedule]]
    section = SftSection(learning_rate=2.0, warmup_fraction=0.2, learning_rate_schedule=schedule)
    ppo = PpoSection(updates=8, schedule_updates=10, warmup_updates=2, learning_rate_schedule=schedule)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    for step, factor in enumerate(expected):
        optim.set_scheduled_rate(optimizer, section, step, 10)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * factor, abs=1e-6)
        assert optim.ppo_learning_rate_factor(step, ppo) == pytest.approx(factor, abs=1e-6)


def test_default_schedule_of_ppo_has_no_warm_up():
    factors = [optim.ppo_learning_rate_factor(update, PpoSection(updates=7)) for update in range(8)]
    assert factors == [1 - update / 7 for update in range(8)]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"updates": 20, "schedule_updates": 10}, "schedule_updates 10 is less than updates 20"),
        ({"updates": 20, "warmup_updates": 20}, "warmup_updates 20 leaves nothing of 20 updates"),
    ],
)
def test_schedule_that_learns_nothing_is_rejected(settings, error):
    with pytest.raises(ValueError, match=error):
        PpoSection(**settings)
    PpoSection(**settings | {"learning_rate_schedule": "constant", "warmup_updates": 0})


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"kl_control": "linear"}, "kl_control 'linear' needs kl_coefficient_end"),
        ({"kl_coefficient_end": 0.1}, "kl_coefficient_end 0.1 has no effect with kl_control 'fixed'"),
        (
            {"kl_control": "adaptive", "kl_schedule_updates": 3},
            "kl_schedule_updates 3 has no effect with kl_control 'adaptive'",
        ),
    ],
)
def test_kl_schedule_that_has_no_effect_is_refused(settings, error):
    with pytest.raises(ValueError, match=error):
        PpoSection(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.4, 0.3, 0.2, 0.1, 0.1]),
        ({"kl_schedule_updates": 3}, [0.5, 0.3, 0.1, 0.1, 0.1, 0.1]),
        ({"kl_schedule_updates": 3, "critic_warmup_updates": 2}, [0.5, 0.5, 0.5, 0.3, 0.1, 0.1]),
        ({"updates": 1}, [0.5, 0.1, 0.1]),
    ],
)
def test_scheduled_beta_moves_linearly_to_its_end(settings, expected):
    values = {"updates": 5, "kl_control": "linear", "kl_coefficient": 0.5, "kl_coefficient_end": 0.1}
    section = PpoSection(**values | settings)
    found = [objective.scheduled_coefficient(update, section) for update in range(len(expected))]
    assert found == pytest.approx(expected)
    assert found[-1] == 0.1  # exactly


@pytest.mark.parametrize(("gradient", "loss"), [(float("nan"), 1.0), (1.0, float("nan"))])
def test_step_that_is_not_finite_leaves_the_weights_unchanged(gradient: float, loss: float):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = optim.adamw([parameter], learning_rate=0.1, weight_decay=0.0)
    parameter.grad = torch.full((2, 2), gradient)
    norm = optim.clipped_step(optimizer, [parameter], max_norm=1.0, loss=loss)
    assert norm == pytest.approx(2 * gradient, nan_ok=True)
    assert parameter.equal(torch.ones(2, 2))
    assert parameter.grad is None
    assert not optimizer.state


def test_seeds_depend_on_every_argument():
    seeds = {
        derive(0, "task", 1),
        derive(1, "task", 1),
        derive(0, "task", 2),
        derive(0, "other", 1),
        derive(0, "task", 1, 0),
        derive(0, "task", 11),
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert derive(0, "task", 1) == derive(0, "task", 1)
    assert sorted(permutation(50, 0, "p", 1)) == list(range(50))
    assert permutation(50, 0, "p", 1) != permutation(50, 0, "p", 2)
