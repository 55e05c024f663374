"""PPO with adapters: only they are trained, checkpointed and published, and a resume is bit for bit equal."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fairlead.errors import ConfigError
from fairlead.nn import adapters
from fairlead.nn.loading import load_causal_lm
from fairlead.types import WeightVersion
from tests.tiny import tiny_causal_lm, tiny_reward_model
from tests.unit.trainer.ppo.ppo_batches import SECTION, rollouts
from tests.unit.trainer.ppo.test_train import Run, configured, same, weights
from trainer.checkpoint import CheckpointStore
from trainer.ppo import actor_critic, publish, step
from trainer.ppo.evaluate import BestUpdate
from trainer.ppo.learner import Learner

RANK = {"ppo.lora.rank": 4, "ppo.lora.alpha": 8.0, "ppo.learning_rate": 1e-2}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tiny_causal_lm(tmp_path_factory.mktemp("model"))


def section(**changes):
    lora = SECTION.lora.model_copy(update={"rank": 4, "alpha": 8.0})
    return SECTION.model_copy(update={"lora": lora} | changes)


def everything(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("critic_init", ["policy", "reward_model"])
def test_update_changes_only_adapters_and_head(tmp_path, model_path, critic_init):
    reward = str(tiny_reward_model(tmp_path / "reward", seed=4)) if critic_init == "reward_model" else None
    models = actor_critic.load(str(model_path), section(), critic_path=reward)
    before = {"policy": everything(models.policy), "critic": everything(models.critic)}
    learner = Learner(models, section(), temperature=1.0, seed=0)
    for update in range(4):  # B changes after the head, A after B
        learner.learn(rollouts(), update=update)
    for part, model in (("policy", models.policy), ("critic", models.critic)):
        moved = {
            name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[part][name])
        }
        head = {"head.weight", "head.bias"} if part == "critic" else set()
        expected = {name for name, _ in model.named_parameters() if ".lora_" in name} | head
        assert moved == expected
    state = models.state()
    assert set(state["policy"]) == set(adapters.tensors(models.policy))
    assert len(state["critic"]) == len(adapters.tensors(models.critic.body)) + 2
    assert {name.rpartition(":")[2] for name in state["policy_optimizer"]} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }
    assert len(state["policy_optimizer"]) == 3 * len(state["policy"])


def test_fresh_critic_shares_the_base_and_has_its_own_values(model_path):
    models = actor_critic.load(str(model_path), section())
    ours = {name: p for name, p in models.policy.base_model.named_parameters() if ".lora_" not in name}
    theirs = dict(models.critic.body.named_parameters())
    assert len(ours) > 10
    assert all(theirs[name] is parameter for name, parameter in ours.items())
    apart = [(p, theirs[n]) for n, p in models.policy.base_model.named_parameters() if ".lora_A" in n]
    assert apart
    assert not any(torch.equal(one, other) for one, other in apart)


def test_trainer_computes_missing_reference_logprobs_with_the_base(model_path):
    fresh = actor_critic.load(str(model_path), section())
    start = step.prepare(fresh, rollouts(), section(proximal_logprobs="all"), temperature=0.7)[0]
    models = actor_critic.load(str(model_path), section())
    learner = Learner(models, section(), temperature=1.0, seed=0)
    for update in range(3):
        learner.learn(rollouts(), update=update)
    given = rollouts()
    # The first and the third rollout came without.
    missing_N = given.per_token(torch.tensor([True, False, True, False]))
    incomplete = replace(given, reference_N=given.reference_N.where(~missing_N, torch.nan))
    before = everything(models.policy)
    prepared, _ = step.prepare(models, incomplete, section(proximal_logprobs="all"), temperature=0.7)
    found_N = prepared.batch.reference_N
    assert torch.equal(found_N[~missing_N], given.reference_N[~missing_N])
    torch.testing.assert_close(found_N[missing_N], start.old_logprobs_N[missing_N], rtol=0, atol=1e-6)
    # The policy itself has moved, and its adapters are on again and still trained.
    assert (prepared.old_logprobs_N - start.old_logprobs_N).abs().max() > 1e-3
    assert same(everything(models.policy), before)
    assert all(parameter.requires_grad for parameter in adapters.tensors(models.policy).values())
    whole = actor_critic.load(str(model_path), SECTION)
    with pytest.raises(
        ConfigError, match="reference.engine: got .* the same setting for workers and trainer"
    ):
        step.prepare(whole, incomplete, SECTION)


def test_full_training_uses_two_separate_models(model_path):
    models = actor_critic.load(str(model_path), SECTION)
    theirs = dict(models.critic.body.named_parameters())
    assert not any(theirs[name] is p for name, p in models.policy.base_model.named_parameters())
    assert models.adapter is None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model_path):
    config = configured(tmp_path_factory.mktemp("undisturbed"), model_path, **RANK)
    with Run(config, model_path) as run:
        result = run.trainer().run()
        manifests = {version: run.world.store.fetch(version) for version in run.world.store.versions()}
        return config, result, weights(run.models), manifests


def test_run_publishes_checkpoints_and_saves_adapters(undisturbed, model_path):
    config, result, _, versions = undisturbed
    assert (result["tasks_trained"], result["tasks_lost"], result["tasks_duplicated"]) == (48, 0, 0)
    assert result["mismatch_max"] < 1e-5  # against a worker that adds the adapter to the weights by hand
    assert result["kl"] > 1e-3
    names = {name for folder in versions.values() for name in load_file(folder / "model-00001.safetensors")}
    assert len(versions) == 3
    assert all(".lora_" in name for name in names)
    kept = load_file(config.folder.checkpoints / "1-6" / "policy.safetensors")
    left = load_file(config.folder.policy_model / adapters.WEIGHTS_FILE)
    averaged = load_file(config.folder.average_policy_model / adapters.WEIGHTS_FILE)
    assert set(kept) == set(left) == set(averaged) == names
    assert not any(torch.equal(averaged[name], left[name]) for name in left)
    assert all(torch.equal(kept[name], left[name]) for name in kept)
    assert not (config.folder.policy_model / "model.safetensors").exists()
    assert adapters.base_of(str(config.folder.policy_model)) == str(model_path)
    trained = load_causal_lm(str(config.folder.policy_model), config.ppo)
    tokens = torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        moved = trained(tokens).logits - load_causal_lm(str(model_path), config.ppo)(tokens).logits
    assert moved.abs().max() > 1e-3


def test_killed_run_ends_with_the_same_adapters_bit_for_bit(tmp_path, model_path, undisturbed):
    with Run(configured(tmp_path, model_path, **RANK), model_path) as run:
        run.killed_after(3)
        result = run.trainer().run()
    assert same(weights(run.models), undisturbed[2])
    assert result["incarnations"] == 2


def test_trained_and_best_policy_can_be_saved_merged(tmp_path, model_path):
    changes = {"ppo.lora.merge": True, "ppo.updates": 3, "checkpoint.every_updates": 1, "checkpoint.keep": 3}
    with Run(configured(tmp_path, model_path, **RANK | changes), model_path) as run:
        trainer = run.trainer()
        trainer.run()
    config, checkpoints = run.config, CheckpointStore(run.config.folder.checkpoints)
    best_one = BestUpdate(WeightVersion(1, 2), 0.5, 0.5)
    policy = trainer.models.policy
    assert publish.save_best(config, best_one, checkpoints, write=trainer._leader.save_model)
    tokens = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        expected = policy(tokens).logits
        for path, limits in (
            (config.folder.policy_model, (0, 1e-5)),
            (config.folder.best_policy_model, (1e-4, 1)),
        ):
            assert (path / "model.safetensors").exists()
            assert not (path / adapters.CONFIG_FILE).exists()
            gap = float((load_causal_lm(str(path), config.ppo)(tokens).logits - expected).abs().max())
            assert limits[0] <= gap < limits[1]
        assert torch.equal(policy(tokens).logits, expected)


OTHER_ADAPTERS = [
    ({"ppo.lora.rank": 2}, r"ppo\.lora: got 'r is 4 there and 2 here'"),
    ({"ppo.lora.alpha": 4.0}, "lora_alpha is 8.0 there and 4.0 here"),
    ({"ppo.lora.target_modules": ["q_proj"]}, "target_modules is"),
    ({"ppo.lora.rank": 0}, r"ppo\.lora\.rank: got '0, but the checkpoints hold adapters'"),
]


def test_resume_rejects_other_adapters(tmp_path, model_path, undisturbed):
    with Run(configured(tmp_path, model_path, **RANK), model_path) as run:
        run.killed_after(2)
        for changes, message in OTHER_ADAPTERS:
            run.config = configured(tmp_path, model_path, **RANK | changes)
            with pytest.raises(ConfigError, match=message):
                run.trainer().run()
        run.config = configured(tmp_path, model_path, **RANK)
        run.trainer().run()
    assert same(weights(run.models), undisturbed[2])


def test_resume_rejects_a_changed_base(tmp_path):
    path = tiny_causal_lm(tmp_path / "base")
    with Run(configured(tmp_path, path, **RANK), path) as run:
        run.killed_after(2)
        tiny_causal_lm(path, seed=9)
        with pytest.raises(
            ConfigError,
            match=r"policy\.path: got .base weights that differ from those of the checkpoints",
        ):
            run.trainer().run()
        tiny_causal_lm(path)
        assert run.trainer().run()["tasks_trained"] == 48
    state = json.loads((run.config.folder.checkpoints / "3-6" / "state.json").read_text())
    assert state["adapter"]["config"]["base_model_name_or_path"] == str(path)
