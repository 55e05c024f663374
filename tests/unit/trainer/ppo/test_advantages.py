"""Advantage estimators against naive loops; without a critic an update trains and keeps the policy only."""

from __future__ import annotations

import random
import statistics
import typing

import pytest
import torch

from fairlead.config.training import WITH_CRITIC, PpoSection
from fairlead.errors import ConfigError
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.ppo_batches import SECTION, rollouts
from trainer.ppo import actor_critic, objective, step
from trainer.ppo.advantages import ESTIMATORS, RewardedTokens
from trainer.ppo.losses import LOSSES

WITHOUT_CRITIC = SECTION.model_copy(update={"estimator": "reinforce++"})


def choices(key: str) -> set[str]:
    return set(typing.get_args(PpoSection.model_fields[key].annotation))


def test_every_name_of_the_configuration_has_a_function():
    assert set(ESTIMATORS) == choices("estimator")
    assert set(ESTIMATORS) >= WITH_CRITIC
    assert set(LOSSES) == choices("loss")


def whitened(values: list[float]) -> list[float]:
    mean, deviation = statistics.mean(values), (statistics.pvariance(values) + 1e-8) ** 0.5
    return [(value - mean) / deviation for value in values]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_plus_plus_is_the_whitened_sum_of_the_rewards_to_come(gamma):
    """A_t = Σ_k γ^k r_{t+k}, whitened over the tokens of all answers, for any content of the padding."""
    draw = random.Random(3)
    lengths = [5, 1, 3, 7]
    rewards = [[draw.gauss(0, 1) for _ in range(max(lengths))] for _ in lengths]
    mask_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    section = PpoSection(estimator="reinforce++", gae_gamma=gamma)
    found = ESTIMATORS["reinforce++"](
        RewardedTokens(torch.tensor(rewards, dtype=torch.float64), mask_BT, torch.zeros(4), torch.arange(4)),
        section,
    )
    expected = []
    for row, length in enumerate(lengths):
        for t in range(length):
            expected.append(sum(gamma ** (k - t) * rewards[row][k] for k in range(t, length)))
    assert found.advantages_N.tolist() == pytest.approx(whitened(expected), abs=1e-12)
    assert found.returns_N is None


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return actor_critic.load(str(tiny_causal_lm(tmp_path_factory.mktemp("lm"))), WITHOUT_CRITIC)


def test_rewards_of_an_update_are_the_score_less_beta_times_k1(models):
    """k1 is 0.25 at each token, β = 0.1; scores 3 − 2, −1, 1, 0.5 − 2, clipped at 3 and less 2 if cut off."""
    prepared, figures = step.prepare(models, rollouts(), WITHOUT_CRITIC)
    expected = []
    for score, length in ((1.0, 5), (-1.0, 1), (1.0, 3), (-1.5, 2)):
        for t in range(length):
            expected.append(score - 0.025 * (length - t))
    assert prepared.advantages_N.tolist() == pytest.approx(whitened(expected), abs=1e-5)
    assert prepared.values is None
    assert "explained_variance" not in figures


def test_update_without_a_critic_raises_good_tokens_and_has_no_figure_or_file_of_a_critic(models):
    before = models.state()["policy"]["lm_head.weight"].clone()
    prepared, _ = step.prepare(models, rollouts(), WITHOUT_CRITIC)
    figures = step.optimise(models, prepared, WITHOUT_CRITIC, temperature=1.0, seed=0, update=0)
    assert not {"value_loss", "critic_gradient_norm"} & figures.keys()
    assert figures["policy_gradient_norm"] > 0
    state = models.state()
    assert list(state) == ["policy", "policy_optimizer"]
    assert not torch.equal(state["policy"]["lm_head.weight"], before)
    models.check_weights()


def test_checkpoint_with_or_without_a_critic_is_refused_by_the_other_kind(models, tmp_path):
    both = actor_critic.load(str(tiny_causal_lm(tmp_path)), SECTION)
    for ours, theirs, message in (
        (models, both, "reinforce\\+\\+, but the checkpoints hold a critic"),
        (both, models, "gae, but the checkpoints hold no critic"),
    ):
        with pytest.raises(ConfigError, match=f"ppo.estimator.*{message}"):
            ours.load_state(theirs.state())
    models.load_state(models.state())


def test_gae_with_a_critic_of_zeros_and_lambda_one_has_the_same_advantages():
    draw = torch.Generator().manual_seed(1)
    rewards_BT = torch.randn(3, 6, generator=draw, dtype=torch.float64)
    mask_BT = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    with_critic, without = (
        ESTIMATORS[name](
            RewardedTokens(
                rewards_BT, mask_BT, torch.zeros(3), torch.arange(3), torch.zeros_like(rewards_BT)
            ),
            PpoSection(gae_lambda=1.0),
        )
        for name in ("gae", "reinforce++")
    )
    assert torch.allclose(with_critic.advantages_N, without.advantages_N, atol=1e-12)
    assert torch.allclose(objective.whiten(with_critic.returns_N), without.advantages_N, atol=1e-12)
