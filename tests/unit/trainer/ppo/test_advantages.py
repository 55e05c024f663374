"""Advantage estimators against naive loops; without a critic an update trains and keeps the policy only."""

from __future__ import annotations

import random
import statistics
import typing

import pytest
import torch

from fairlead.config import ignored
from fairlead.config.training import OF_GROUPS, WITH_CRITIC, PpoSection
from fairlead.errors import ConfigError
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.ppo_batches import SECTION, rollouts
from trainer.ppo import actor_critic, objective, step
from trainer.ppo.advantages import ESTIMATORS, RewardedTokens, group_figures, pairs
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


GROUPS = [0, 0, 0, 1, 2, 2, 2, 2, 3, 3]
"""One group has a single answer; the rewards of the last group are equal."""


def grouped(draw: random.Random) -> RewardedTokens:
    lengths = [draw.randrange(1, 6) for _ in GROUPS]
    lengths[8:] = [2, 2]
    rewards = [[draw.gauss(0, 1) for _ in range(max(lengths))] for _ in lengths]
    rewards[9][:2] = rewards[8][:2]
    mask_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    scores_B = torch.zeros(len(GROUPS), dtype=torch.float64)
    return RewardedTokens(torch.tensor(rewards, dtype=torch.float64), mask_BT, scores_B, torch.tensor(GROUPS))


def naive(tokens: RewardedTokens, estimator: str, scale: str) -> list[float]:
    """The advantage of every token, group by group."""
    lengths = tokens.mask_BT.sum(1).tolist()
    rewards = [sum(row[:n]) for row, n in zip(tokens.rewards_BT.tolist(), lengths, strict=True)]
    found = []
    for index, group in enumerate(GROUPS):
        others = [rewards[i] for i, other in enumerate(GROUPS) if other == group and i != index]
        together = [*others, rewards[index]]
        if not others:
            advantage = 0.0
        elif estimator == "rloo":
            advantage = rewards[index] - statistics.mean(others)
        else:
            advantage = rewards[index] - statistics.mean(together)
            if scale != "none":
                advantage /= statistics.stdev(rewards if scale == "batch" else together) + 1e-6
        found += [advantage] * lengths[index]
    return whitened(found) if estimator == "reinforce++_baseline" else found


@pytest.mark.parametrize(
    ("estimator", "scale"),
    [
        ("group", "none"),
        ("group", "group"),
        ("group", "batch"),
        ("rloo", "none"),
        ("reinforce++_baseline", "none"),
    ],
)
def test_estimators_of_groups_compare_the_rewards_of_whole_answers(estimator, scale):
    tokens = grouped(random.Random(5))
    section = PpoSection(estimator=estimator, group_scale=scale, num_samples=2)
    found = ESTIMATORS[estimator](tokens, section)
    assert found.advantages_N.tolist() == pytest.approx(naive(tokens, estimator, scale), abs=1e-12)
    assert found.returns_N is None


def test_groups_of_one_answer_or_of_equal_answers_give_no_signal_and_no_nan():
    rewards_BT, mask_BT = torch.full((2, 1), 3.7), torch.ones(2, 1, dtype=torch.bool)
    for groups_B in (torch.tensor([0, 1]), torch.tensor([0, 0])):
        tokens = RewardedTokens(rewards_BT, mask_BT, rewards_BT[:, 0], groups_B)
        for estimator in OF_GROUPS:
            for scale in ("none", "group", "batch"):
                changes = {"estimator": estimator, "group_scale": scale, "num_samples": 2}
                section = PpoSection().model_copy(update=changes)
                assert ESTIMATORS[estimator](tokens, section).advantages_N.tolist() == [0.0, 0.0]
    figures = group_figures(torch.tensor([1.0, 3.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1]))
    assert figures == {"group_score_std": pytest.approx(2**0.5 / 2), "groups_without_signal": 0.5}


@pytest.mark.parametrize("size", [3, 7, 16])
def test_answers_of_equal_rewards_have_no_advantage_of_rounding(size):
    """The mean of equal numbers in float32 is not that number; dividing by a deviation of 0 enlarges it."""
    mask_BT = torch.ones(size, 1, dtype=torch.bool)
    groups_B = torch.zeros(size, dtype=torch.long)
    for number in range(10):
        scores_B = torch.full((size,), 0.1 + 1.37 * number)
        tokens = RewardedTokens(scores_B[:, None], mask_BT, scores_B, groups_B)
        for estimator in {*OF_GROUPS, "reinforce++"}:
            for scale in ("none", "group", "batch"):
                changes = {"estimator": estimator, "group_scale": scale, "num_samples": 2}
                section = PpoSection().model_copy(update=changes)
                advantages_N = ESTIMATORS[estimator](tokens, section).advantages_N
                assert advantages_N.dtype == scores_B.dtype
                assert advantages_N.abs().max() < 1e-6
        assert group_figures(scores_B, groups_B)["groups_without_signal"] == 1


def test_pairs_are_the_best_and_the_worst_answer_of_each_group_that_has_them():
    """Of equal ones the first. Group 1 has one answer, group 3 equal ones, group 4 one that is learnt."""
    groups = [0, 0, 0, 0, 1, 2, 2, 2, 3, 3, 4, 4, 4]
    scores = [1.0, 3.0, 3.0, 1.0, 9.0, 2.0, 5.0, -1.0, 4.0, 4.0, 0.0, 1.0, 2.0]
    is_learned = [True] * 10 + [False, True, False]
    tokens = RewardedTokens(
        rewards_BT=torch.zeros(13, 2),
        mask_BT=torch.tensor([[True, index % 2 == 0] for index in range(13)]),
        scores_B=torch.tensor(scores),
        groups_B=torch.tensor(groups),
        is_learned_B=torch.tensor(is_learned),
    )
    found = ESTIMATORS["pairs"](tokens, SECTION)
    advantages_B = torch.tensor([-2.0, 2.0, 0, 0, 0, 0, 6.0, -6.0, 0, 0, 0, 0, 0])
    assert torch.equal(found.advantages_N, advantages_B.repeat_interleave(tokens.mask_BT.sum(1)))
    assert pairs(advantages_B) == (1, 0, 6, 7)
    assert pairs(torch.zeros(4)) == ()


PAIRS = {"estimator": "pairs", "loss": "online_dpo", "num_samples": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "rloo"}, "'online_dpo' does not fit estimator 'rloo'.*set estimator = 'pairs'"),
        ({"loss": "ppo"}, "'ppo' does not fit estimator 'pairs'.*loss = 'online_dpo' or"),
        ({"num_samples": 1}, "'pairs' compares the answers to one prompt, but num_samples is 1"),
        ({"clip_range": 0.1}, "clip_range 0.1 has no effect with loss 'online_dpo'"),
        ({"loss_aggregation": "tokens"}, "loss_aggregation 'tokens' has no effect"),
        ({"kl_in": "loss"}, "kl_in 'loss' has no effect"),
        ({"proximal_logprobs": "all"}, "proximal_logprobs 'all' has no effect"),
        ({"kl_coefficient": 0.0}, "kl_coefficient 0 leaves nothing of loss 'online_dpo'"),
        ({"kl_control": "linear", "kl_coefficient_end": 0.0}, "kl_coefficient 0 leaves nothing"),
        ({"mini_batch_size": 1}, "mini_batch_size 1 cuts a pair"),
        ({"critic_warmup_updates": 2}, "does not have"),
    ],
)
def test_settings_that_do_not_fit_pairs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PpoSection(**PAIRS | changes)


def test_settings_without_effect_are_named_with_what_decides():
    assert ignored.of_ppo(PpoSection(**PAIRS, critic_learning_rate=0.1)) == (
        "ppo.critic_learning_rate has no effect with ppo.estimator = 'pairs'",
    )
    assert ignored.of_ppo(PpoSection()) == ()
    groups = {"estimator": "rloo", "num_samples": 2}
    changed = {"gae_lambda": 0.5, "gae_gamma": 0.9, "kl_estimator": "k2", "max_extra_batches": 5}
    given = PpoSection(**groups, **changed, kl_in="loss")
    assert ignored.of_ppo(given) == (
        "ppo.gae_lambda has no effect with ppo.estimator = 'rloo'",
        "ppo.gae_gamma has no effect with ppo.estimator = 'rloo'",
        "ppo.max_extra_batches has no effect with ppo.dynamic_sampling = False",
        "ppo.kl_estimator has no effect with ppo.kl_in = 'loss'",
    )
    with pytest.raises(ValueError, match="whiten_rewards scales the rewards of tokens"):
        PpoSection(**groups, whiten_rewards=True)
    with pytest.raises(ValueError, match="estimator 'gae' does not compare the answers to one prompt; use"):
        PpoSection(num_samples=2, dynamic_sampling=True)
    with pytest.raises(ValueError, match="'rloo' compares the answers to one prompt, but num_samples is 1"):
        PpoSection(estimator="rloo")


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
