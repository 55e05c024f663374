"""An update with every part of the recipe: stale rollouts, PPO-ptx, a critic from the reward model."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil

import pytest
import torch

from fairlead.config import load
from fairlead.config.base import ComputeSection
from fairlead.config.rewards import CombinedSection, RewardTerm
from fairlead.config.training import PpoSection
from fairlead.errors import ConfigError, ModelLoadError
from fairlead.nn.reward_model import load_reward_model
from tests.tiny import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from tests.unit.trainer.ppo.ppo_batches import SECTION, double, exact_rollouts, rollouts
from trainer.ppo import actor_critic, critic_start, learner, missing_eos, objective, step
from trainer.ppo.learner import Learner
from trainer.sequences import TokenSequence, pad

DEMONSTRATIONS = [
    TokenSequence((1, 8, 9, 10, 2), 2),
    TokenSequence((1, 4, 2), 1),
    TokenSequence((1, 5, 6, 7, 8, 9, 2), 3),
]
STALE = frozenset({5, 7})
"""Tasks; rollouts 0 and 2 of the batch."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return actor_critic.load(str(tiny_causal_lm(tmp_path_factory.mktemp("lm"))), SECTION)


def gradient(models: actor_critic.ActorCritic) -> torch.Tensor:
    found = [p.grad.flatten() for p in (*models.policy.parameters(), *models.critic.parameters())]
    for module in (models.policy, models.critic):
        module.zero_grad()
    return torch.cat(found)


def with_changes(**changes):
    return SECTION.model_copy(update=changes)


@pytest.mark.parametrize("budget", [1, 7, 12])
def test_gradient_of_the_full_recipe_does_not_depend_on_micro_batches(models, budget):
    found = double(models)
    section = with_changes(
        ptx_coefficient=0.7, clip_range_high=0.3, dual_clip=3.0, whiten_rewards=True, kl_estimator="k2"
    )
    prepared, _ = step.prepare(found, exact_rollouts(STALE), section, temperature=0.7)
    assert len(set(prepared.behaviour_weights_N.tolist())) > 3

    def whole(max_tokens: int) -> torch.Tensor:
        split = section.model_copy(update={"max_micro_batch_tokens": max_tokens})
        step.accumulate_gradients(found, prepared, [3, 1, 0, 2], split, temperature=0.7)
        step.accumulate_ptx_gradients(found, DEMONSTRATIONS, split)
        return gradient(found)

    one, many = whole(10_000), whole(budget)
    assert one.abs().max() > 1e-2
    assert torch.allclose(many, one, rtol=1e-6, atol=1e-9)


def test_all_proximal_logprobs_are_the_trainers_with_truncated_weights(models):
    """With noisy log-probs of the engine the first ratio is 1, and the noise is in the weights."""
    found = copy.deepcopy(models)
    section = with_changes(proximal_logprobs="all", max_behaviour_weight=1.2)
    prepared, figures = step.prepare(found, rollouts(), section, temperature=0.7)
    batch = prepared.batch
    members = [0, 1, 2, 3]
    for padded, where in step.micro_batches(batch, members, max_tokens=7):
        computed_N = found.logprobs(padded, temperature=0.7)
        assert torch.allclose(prepared.old_logprobs_N[where], computed_N, atol=1e-6)
    expected_N = (prepared.old_logprobs_N - batch.behaviour_N).exp().clamp(max=1.2)
    assert torch.allclose(prepared.behaviour_weights_N, expected_N)
    assert figures["behaviour_weight"] == pytest.approx(float(expected_N.mean()))
    assert "stale_rollouts" not in figures
    figures = step.accumulate_gradients(found, prepared, members, section, temperature=0.7)
    assert figures["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert figures["mismatch_mean"] > 0.1


@pytest.mark.parametrize(
    ("overrides", "resolved"),
    [
        ({}, "stale"),
        ({"policy.engine": "vllm"}, "all"),
        ({"policy.dtype": "bfloat16"}, "all"),
        ({"ppo.dtype": "bfloat16"}, "all"),
        ({"weights.dtype": "bfloat16"}, "all"),
        ({"policy.engine": "vllm", "ppo.proximal_logprobs": "stale"}, "stale"),
        ({"ppo.proximal_logprobs": "all"}, "all"),
    ],
    ids=str,
)
def test_proximal_logprobs_are_computed_where_the_engine_is_not_exact(overrides, resolved: str):
    assert learner._proximal_logprobs(load(overrides=overrides)) == resolved


def test_gradient_at_zero_staleness_equals_plain_ppo_bit_for_bit(models):
    found = copy.deepcopy(models)
    prepared, figures = step.prepare(found, rollouts(), SECTION, temperature=0.7)
    batch = prepared.batch
    assert prepared.old_logprobs_N is batch.behaviour_N
    assert not {"stale_rollouts", "behaviour_weight"} & figures.keys()
    members = [0, 1, 2, 3]
    step.accumulate_gradients(found, prepared, members, SECTION, temperature=0.7)
    ours = torch.cat([p.grad.flatten() for p in found.policy.parameters()])
    found.policy.zero_grad()
    for padded, where in step.micro_batches(batch, members, max_tokens=SECTION.max_micro_batch_tokens):
        logprobs_N = found.logprobs(padded, temperature=0.7)
        ratio_N = (logprobs_N - batch.behaviour_N[where]).exp()
        advantages_N = prepared.advantages_N[where]
        plain_N = -torch.minimum(ratio_N * advantages_N, ratio_N.clamp(0.8, 1.2) * advantages_N)
        (plain_N.sum() / len(batch.behaviour_N)).backward()
    plain = torch.cat([p.grad.flatten() for p in found.policy.parameters()])
    assert plain.abs().max() > 1e-3
    assert torch.equal(ours, plain)


def test_stale_rollouts_get_proximal_logprobs(models):
    found = rollouts(STALE)
    assert found.stale_B.tolist() == [True, False, True, False]
    prepared, figures = step.prepare(models, found, SECTION, temperature=0.7)
    with torch.no_grad():
        own_N = models.logprobs(pad(found.sequences, torch.device("cpu")), temperature=0.7)
    stale_N = found.per_token(found.stale_B)
    assert stale_N.tolist() == [True] * 5 + [False] + [True] * 3 + [False] * 2
    assert torch.allclose(prepared.old_logprobs_N[stale_N], own_N[stale_N], atol=1e-6)
    assert torch.equal(prepared.old_logprobs_N[~stale_N], found.behaviour_N[~stale_N])
    expected_N = (own_N - found.behaviour_N).exp().clamp(max=2.0)
    assert torch.allclose(prepared.behaviour_weights_N[stale_N], expected_N[stale_N], rtol=1e-5)
    assert torch.equal(prepared.behaviour_weights_N[~stale_N], torch.ones(3))
    assert figures["stale_rollouts"] == 0.5
    assert figures["behaviour_weight"] == pytest.approx(float(expected_N[stale_N].mean()), rel=1e-5)
    # The penalty is that of π_prox, the policy that the update starts from.
    assert figures["kl"] == pytest.approx(float((prepared.old_logprobs_N - found.reference_N).sum()) / 4)
    # Only tokens recorded as sampled by these weights may show a mismatch.
    fresh_N = (own_N - found.behaviour_N).abs()[~stale_N]
    fresh = step.accumulate_gradients(copy.deepcopy(models), prepared, [0, 1, 2, 3], SECTION, temperature=0.7)
    assert fresh["mismatch_max"] == pytest.approx(float(fresh_N.max()), rel=1e-4)
    none = step.accumulate_gradients(copy.deepcopy(models), prepared, [0, 2], SECTION, temperature=0.7)
    assert "mismatch_max" not in none
    assert none["ratio"] == pytest.approx(1.0, abs=1e-5)  # π_θ/π_prox before the first step


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_reward_uses_the_configured_kl_estimator(models, estimator):
    section = with_changes(kl_estimator=estimator)
    found = rollouts()
    _, figures = step.prepare(models, found, section, kl_coefficient=0.4)
    charged = float(objective.KL_ESTIMATORS[estimator](found.behaviour_N, found.reference_N).sum()) / 4
    assert figures["reward_with_kl"] == pytest.approx((1.0 - 1.0 + 1.0 - 1.5) / 4 - 0.4 * charged, abs=1e-5)
    of_each = {"k1": figures["kl"], "k2": figures["kl_k2"], "k3": figures["kl_k3"]}
    assert of_each[estimator] == pytest.approx(charged, rel=1e-5)


def test_whitened_rewards_keep_their_mean_and_are_learned(models):
    found = rollouts()
    plain, _ = step.prepare(models, found, with_changes(gae_lambda=1.0))
    white, _ = step.prepare(models, found, with_changes(gae_lambda=1.0, whiten_rewards=True))
    # With γ = λ = 1 and a critic that returns 0, rewards are the differences of the returns.
    plain_BT, white_BT = (found.rectangle(one.values.returns_N) for one in (plain, white))
    rewards_N, whitened_N = (
        (one - torch.cat([one[:, 1:], torch.zeros(4, 1)], 1))[found.mask_BT] for one in (plain_BT, white_BT)
    )
    assert float(whitened_N.mean()) == pytest.approx(float(rewards_N.mean()), abs=1e-5)
    assert float(whitened_N.var(unbiased=False)) == pytest.approx(1.0, abs=1e-4)
    assert torch.allclose(whitened_N, objective.whiten(rewards_N, shift_mean=False), atol=1e-5)


def test_ptx_adds_gamma_times_the_cross_entropy_of_the_demonstrations(models):
    found = double(models)
    loss = step.accumulate_ptx_gradients(found, DEMONSTRATIONS, with_changes(ptx_coefficient=0.25))
    ours = torch.cat([p.grad.flatten() for p in found.policy.parameters()])
    found.policy.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for one in DEMONSTRATIONS:  # by definition, one at a time, from all logits
        logits = found.policy(torch.tensor([one.token_ids])).logits[0]
        table = logits.double().log_softmax(-1)
        for position in range(one.prompt_length, len(one.token_ids)):
            total = total - table[position - 1, one.token_ids[position]]
    mean = total / 9
    (0.25 * mean).backward()
    naive = torch.cat([p.grad.flatten() for p in found.policy.parameters()])
    assert loss == pytest.approx(mean.item(), rel=1e-6)
    assert naive.abs().max() > 1e-2
    assert (ours - naive).abs().max() < 1e-6 * naive.abs().max()
    assert all(p.grad is None for p in found.critic.parameters())


def test_ptx_requires_demonstrations(models):
    with pytest.raises(ConfigError, match="ptx_coefficient"):
        Learner(models, with_changes(ptx_coefficient=1.0), temperature=1.0, seed=0)


def test_ptx_keeps_the_policy_near_its_demonstrations(models):
    nll = {}
    for gamma in (0.0, 5.0):
        fresh = actor_critic.ActorCritic(copy.deepcopy(models.policy), copy.deepcopy(models.critic), SECTION)
        learner = Learner(
            fresh,
            with_changes(ptx_coefficient=gamma, ptx_batch_size=3),
            temperature=1.0,
            seed=0,
            demonstrations=DEMONSTRATIONS,
        )
        for update in range(4):
            figures = learner.learn(rollouts(), update=update)
        assert ("ptx_loss" in figures) is bool(gamma)
        assert learner.state()["ptx_cursor"] == (12 if gamma else 0)
        with torch.no_grad():
            nll[gamma] = -float(fresh.logprobs(pad(DEMONSTRATIONS, fresh.device), temperature=1.0).mean())
    assert nll[5.0] < nll[0.0] - 0.05


def test_critic_from_the_reward_model_returns_its_scores(tmp_path):
    policy = str(tiny_causal_lm(tmp_path / "policy"))
    reward_path = str(tiny_reward_model(tmp_path / "reward", seed=4))
    found = actor_critic.load(policy, SECTION, critic_path=reward_path)
    judge = load_reward_model(reward_path, ComputeSection(device="cpu"))
    sequences = rollouts().sequences
    with torch.no_grad():
        values_N = found.values(pad(sequences, torch.device("cpu")))
    ends = torch.tensor([one.response_length for one in sequences]).cumsum(0) - 1
    for end, one in zip(ends.tolist(), sequences, strict=True):
        before = one.token_ids[:-1]  # the value is read at the position that predicts the last token
        with torch.no_grad():
            score = judge.scores(torch.tensor([before]), torch.tensor([len(before)]))
        assert float(values_N[end]) == pytest.approx(float(score), abs=1e-5)
    fresh = actor_critic.load(policy, SECTION)
    with torch.no_grad():
        assert not fresh.values(pad(sequences, torch.device("cpu"))).any()


def test_critic_with_another_tokenizer_is_rejected(tmp_path):
    policy = str(tiny_causal_lm(tmp_path / "policy"))
    other = str(tiny_reward_model(tmp_path / "reward"))
    tiny_tokenizer(pad_is_eos=True).save_pretrained(other)
    with pytest.raises(
        ModelLoadError, match=r"critic_init = 'reward_model'.*tokenizer.*critic_init = 'policy'"
    ):
        actor_critic.load(policy, SECTION, critic_path=other)
    with pytest.raises(ModelLoadError, match="reward head"):
        actor_critic.load(policy, SECTION, critic_path=policy)


@pytest.mark.parametrize(
    ("changes", "starts_from", "reason"),
    [
        ({}, "reward", ""),
        ({"ppo.critic_init": "policy"}, None, ""),
        ({"ppo.estimator": "reinforce++"}, None, ""),
        ({"reward.path": "nothing/here"}, None, "cannot be read"),
        ({"reward.path": ""}, None, "there is no reward model"),
        ({"reward.path": "other"}, None, "another tokenizer"),
        ({"reward.path": "gpt2"}, None, "is a gpt2 model of"),
        ({"ppo.lora.rank": 2}, None, "shares the frozen weights"),
        ({"reward.engine": "function", "reward.function": "judge.py:score"}, None, "is not one model"),
        ({"ppo.lora.rank": 2, "ppo.critic_init": "reward_model"}, "reward", ""),
        ({"reward.path": "ensemble"}, "ensemble/member-0", ""),
    ],
    ids=str,
)
def test_critic_starts_from_the_reward_model_where_it_can(
    tmp_path, monkeypatch, changes, starts_from, reason
):
    monkeypatch.chdir(tmp_path)
    policy = str(tiny_causal_lm(tmp_path / "policy"))
    tiny_reward_model(tmp_path / "reward", seed=4)
    if changes.get("reward.path") == "other":
        tiny_tokenizer(pad_is_eos=True).save_pretrained(tiny_reward_model(tmp_path / "other"))
    if changes.get("reward.path") == "gpt2":
        config = json.loads((tmp_path / "reward" / "config.json").read_text())
        shutil.copytree(tmp_path / "reward", tmp_path / "gpt2")
        (tmp_path / "gpt2" / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    if changes.get("reward.path") == "ensemble":
        tiny_reward_model(tmp_path / "ensemble" / "member-0")
        (tmp_path / "ensemble" / "ensemble.json").write_text('{"members": ["member-0"]}')
    config = load(overrides={"policy.path": policy, "reward.path": "reward"} | changes)
    found = critic_start.choose(config)
    assert found.reward_model == starts_from
    assert reason in found.reason
    assert bool(reason) == bool(found.reason)


def test_policy_stays_while_the_critic_warms_up(models):
    section = with_changes(
        critic_warmup_updates=2, kl_control="adaptive", kl_target=0.5, kl_horizon=40.0, warmup_updates=1
    )
    fresh = actor_critic.ActorCritic(copy.deepcopy(models.policy), copy.deepcopy(models.critic), section)
    learner = Learner(fresh, section, temperature=0.7, seed=0)
    before = copy.deepcopy(fresh.policy.state_dict())
    rates = []
    for update in range(4):
        critic = fresh.critic.head.weight.detach().clone()
        figures = learner.learn(rollouts(), update=update)
        rates.append((figures["lr"], fresh.optimizers["critic"].param_groups[0]["lr"]))
        same = all(torch.equal(value, before[name]) for name, value in fresh.policy.state_dict().items())
        is_warm = update >= 2
        assert same is not is_warm
        assert (learner.kl_coefficient(update + 1) != 0.1) is is_warm
        assert ("policy_gradient_norm" in figures) is is_warm
        assert not torch.equal(fresh.critic.head.weight, critic)
        assert figures["entropy"] > 0
        assert not fresh.optimizers["policy"].state or is_warm
    # The policy's schedule of 8 updates, its own warm-up included, begins after those of the critic.
    assert rates == [
        (pytest.approx(1e-3 * policy), pytest.approx(1e-3 * critic))
        for policy, critic in ((0, 1 / 2), (0, 1), (1 / 2, 8 / 9), (1, 7 / 9))
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critic_warmup_updates": 2, "estimator": "reinforce++"}, "does not have"),
        ({"critic_warmup_updates": 60, "warmup_updates": 40}, "leave nothing of 100 updates"),
    ],
)
def test_critic_warmup_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PpoSection(**settings)


def test_average_follows_the_weights_of_every_step(models):
    section = with_changes(ema_decay=0.75, mini_batch_size=2)
    fresh = actor_critic.ActorCritic(copy.deepcopy(models.policy), copy.deepcopy(models.critic), section)
    expected = {name: value.clone() for name, value in fresh.policy.named_parameters()}
    step_of = fresh.step

    def noted(*arguments, **named):
        figures = step_of(*arguments, **named)
        for name, value in fresh.policy.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * value.detach()
        return figures

    fresh.step = noted
    learner = Learner(fresh, section, temperature=0.7, seed=0)
    learner.learn(rollouts(), update=0)
    for name, value in expected.items():
        assert torch.allclose(fresh.average.tensors[name], value, atol=1e-7)
    trained = copy.deepcopy(fresh.policy.state_dict())
    with fresh.average.in_place():
        for name, value in fresh.policy.named_parameters():
            assert torch.allclose(value, expected[name], atol=1e-7)
    assert all(torch.equal(value, trained[name]) for name, value in fresh.policy.state_dict().items())
    # A run that begins to average later begins with the weights that it has.
    fresh.load_state({name: value for name, value in fresh.state().items() if name != "policy_ema"})
    assert all(torch.equal(value, trained[name]) for name, value in fresh.average.tensors.items())


def test_missing_end_costs_a_deviation_of_the_scores_unless_it_is_set(models, tmp_path):
    # The scores are 9, -1, 1 and 0.5, and the tasks with 9 and 0.5 were cut off.
    deviation = float(torch.tensor([9.0, -1.0, 1.0, 0.5]).std(unbiased=False))
    cases = [
        ({}, None, deviation),
        ({}, 1.5, 1.5),
        ({"missing_eos_penalty": 0.25}, 1.5, 0.25),
        ({"normalise_scores": True}, 1.5, 1.0),
    ]
    for changes, recorded, penalty in cases:
        section = with_changes(**{"missing_eos_penalty": None, "score_clip": 100.0, **changes})
        fresh = actor_critic.ActorCritic(copy.deepcopy(models.policy), copy.deepcopy(models.critic), section)
        given = {"temperature": 0.7, "seed": 0, "score_deviation": recorded}
        learner = Learner(fresh, section, **given)
        figures = learner.learn(rollouts(), update=0)
        assert learner.missing_eos_penalty == pytest.approx(penalty)
        if not section.normalise_scores:
            expected = figures["reward"] - penalty / 2 - 0.1 * figures["kl"]
            assert figures["reward_with_kl"] == pytest.approx(expected, abs=1e-5)
        resumed = Learner(fresh, section, **given | {"score_deviation": 7.0})
        resumed.load_state(json.loads(json.dumps(learner.state())))
        assert resumed.missing_eos_penalty == learner.missing_eos_penalty


def test_deviation_is_read_beside_the_reward_model(tmp_path):
    model = load_reward_model(str(tiny_reward_model(tmp_path / "made")), ComputeSection(device="cpu"))
    model.set_deviation(1.25)
    model.save(tmp_path / "saved", tiny_tokenizer())
    for path, found in (("saved", 1.25), ("made", None), ("nowhere", None)):
        config = load(overrides={"reward.path": str(tmp_path / path)})
        assert missing_eos.of_reward_model(config) == found


def test_adaptive_control_uses_the_divergence_per_answer(models):
    fresh = actor_critic.ActorCritic(copy.deepcopy(models.policy), copy.deepcopy(models.critic), SECTION)
    section = with_changes(kl_control="adaptive", kl_target=0.5, kl_horizon=40.0)
    learner = Learner(fresh, section, temperature=0.7, seed=0)
    figures = learner.learn(rollouts(), update=0)
    # The sum of k1 is 11 · 0.25 over 4 answers = 0.6875, 0.375 above the target: clipped to 0.2.
    assert figures["kl_coefficient"] == 0.1
    assert learner.kl_coefficient(1) == pytest.approx(0.1 * (1 + 0.2 * 4 / 40))
    again = learner.learn(rollouts(), update=1)
    assert again["kl_coefficient"] == learner.kl_coefficient(2) / (1 + 0.2 * 4 / 40)
    assert again["reward_with_kl"] < figures["reward_with_kl"]


def test_multiplier_of_a_constraint_follows_the_cost_and_is_in_the_checkpoint(models):
    """Scores are combined again with the present λ, not with that of the service."""
    combined = CombinedSection(
        terms={"good": RewardTerm(path="a"), "cost": RewardTerm(path="b")},
        rule="constraint", constrained="cost", limit=0.5, multiplier=2.0, multiplier_step=0.4,
    )  # fmt: skip
    found = rollouts()
    count = len(found.sequences)
    terms = {"good": torch.arange(count) / count, "cost": torch.arange(count) % 2 + 0.5}
    given = dataclasses.replace(found, terms=terms, scores_B=torch.full((count,), 99.0))
    fresh = actor_critic.ActorCritic(copy.deepcopy(models.policy), copy.deepcopy(models.critic), SECTION)
    ours = Learner(fresh, SECTION, temperature=0.7, seed=0, combined=combined)
    mean = float(terms["cost"].mean())
    figures = ours.learn(given, update=0)
    assert figures["reward"] == pytest.approx(float((terms["good"] - 2.0 * (terms["cost"] - 0.5)).mean()))
    assert (figures["reward_multiplier"], figures["term_cost"]) == (2.0, pytest.approx(mean))
    assert ours.multiplier == pytest.approx(2.0 + 0.4 * (mean - 0.5))
    resumed = Learner(fresh, SECTION, temperature=0.7, seed=0, combined=combined)
    resumed.load_state(ours.state())
    assert resumed.multiplier == ours.multiplier
    fixed = combined.model_copy(update={"multiplier_step": 0.0})
    ours = Learner(fresh, SECTION, temperature=0.7, seed=0, combined=fixed)
    assert ours.learn(given, update=1)["reward"] == 99.0


def test_scores_beyond_the_clip_are_reported_once(models, caplog):
    """A reward function of 0 to 100 would teach nothing above `score_clip`."""
    trained = Learner(copy.deepcopy(models), with_changes(score_clip=10.0), temperature=1.0, seed=0)
    batch = rollouts()  # scores 1, 9, −1 and 0.5
    trained.learn(batch, update=0)
    assert "score_clip" not in caplog.text
    for update in (1, 2):
        trained.learn(dataclasses.replace(batch, scores_B=batch.scores_B * 20), update=update)
    assert caplog.text.count("75% of the scores, which are -20 to 180, are beyond ppo.score_clip = 10") == 1
