"""Training in bfloat16 on a CPU: trained weights, heads and log-probs stay float32; every stage learns."""

from __future__ import annotations

import json

import pytest
import torch

from fairlead.config.base import ComputeSection
from fairlead.nn.heads import ScalarHead
from fairlead.nn.loading import load_causal_lm
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.ppo_batches import SECTION, rollouts
from tests.unit.trainer.ppo.test_train import Run, configured
from tests.unit.trainer.stage_world import reward_model_run, sft_run
from trainer.ppo import actor_critic
from trainer.ppo.learner import Learner
from trainer.reward_model.train import train as train_reward_model
from trainer.sequences import pad
from trainer.sft.train import train as train_sft

BF16 = {"dtype": "bfloat16"}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tiny_causal_lm(tmp_path_factory.mktemp("model"))


def test_head_stays_float32_in_mixed_precision():
    head, hidden = ScalarHead(512), torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head(hidden)
    assert torch.equal(mixed, head(hidden))


@pytest.mark.parametrize("rank", [0, 4])
def test_trained_weights_are_float32_and_a_frozen_base_is_not(model_path, rank):
    section = SECTION.model_copy(update=BF16 | {"lora": SECTION.lora.model_copy(update={"rank": rank})})
    models = actor_critic.load(str(model_path), section)
    learner = Learner(models, section, temperature=1.0, seed=0)
    for update in range(2):
        figures = learner.learn(rollouts(), update=update)
    assert all(torch.isfinite(torch.tensor(value)) for name, value in figures.items())
    frozen = set()
    for model, optimizer in (
        (models.policy, models.optimizers["policy"]),
        (models.critic, models.optimizers["critic"]),
    ):
        for parameter in model.parameters():
            if parameter.requires_grad:
                assert parameter.dtype == torch.float32
                assert all(value.dtype == torch.float32 for value in optimizer.state[parameter].values())
            else:
                frozen.add(parameter.dtype)
    assert frozen == ({torch.bfloat16} if rank else set())
    padded = pad(rollouts().sequences, models.device)
    with torch.no_grad():
        logprobs, entropies = models.logprobs_and_entropies(padded, temperature=1.0)
        assert {logprobs.dtype, entropies.dtype, models.values(padded).dtype} == {torch.float32}
    # The body does compute in bfloat16: float32 gives a slightly different result.
    models.dtype = torch.float32
    if rank:
        models.policy.float()
    with torch.no_grad():
        exact = models.logprobs(padded, temperature=1.0)
    assert 1e-5 < float((exact - logprobs).abs().max()) < 0.2


def test_sft_learns(tmp_path):
    config = sft_run(tmp_path, epochs=4, dtype="bfloat16")
    result = train_sft(config)
    lines = [json.loads(line) for line in config.folder.metrics("sft").read_text().splitlines()]
    assert lines[0]["loss"] > 2
    assert result["train_loss"] < 1.2
    left = load_causal_lm(str(config.folder.sft_model), ComputeSection(device="cpu"))
    assert all(parameter.dtype == torch.float32 for parameter in left.parameters())
    # Float32 weights keep steps that bfloat16 would round away.
    assert any(not torch.equal(p, p.bfloat16().float()) for p in left.parameters())


def test_the_reward_model_learns(tmp_path):
    changes = {"dtype": "bfloat16", "gradient_checkpointing": True}
    config = reward_model_run(tmp_path, comparisons=120, **changes)
    tiny_causal_lm(config.folder.sft_model)
    result = train_reward_model(config)
    assert result["accuracy"] > 0.95
    assert result["loss"] < 0.4


@pytest.mark.parametrize("rank", [0, 4])
def test_ppo_learns_with_a_mismatch_from_rounding(tmp_path, model_path, rank):
    """The worker samples in float32: its log-probs differ only by the rounding of bfloat16."""
    changes = {
        "ppo.dtype": "bfloat16",
        "ppo.gradient_checkpointing": True,
        "ppo.lora.rank": rank,
        "ppo.updates": 8,
        "ppo.batch_size": 24,
        "ppo.mini_batch_size": 12,
        "ppo.learning_rate": 6e-2 if rank else 2e-2,
        "ppo.kl_coefficient": 0.01,
        "sampling.max_new_tokens": 1,
        "checkpoint.every_updates": 100,
    }
    config = configured(tmp_path, model_path, **changes)
    with Run(config, model_path, score=lambda answer: float(7 <= answer[0] <= 12)) as run:
        result = run.trainer().run()
    assert result["proxy_first"] < 0.35
    assert result["proxy_last"] > 0.6
    assert 1e-5 < result["mismatch_max"] < 0.5
