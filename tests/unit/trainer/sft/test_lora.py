"""SFT with adapters: writes an adapter by default, a whole model if merged; PPO starts from either."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from fairlead.config import RunConfig, load
from fairlead.config.base import ComputeSection
from fairlead.errors import ConfigError
from fairlead.nn import adapters
from fairlead.nn.loading import load_causal_lm, load_tokenizer
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.test_train import Run, configured
from tests.unit.trainer.stage_world import write_demonstrations
from trainer.sft.train import train

CPU = ComputeSection(device="cpu")
TOKENS = torch.tensor([[1, 5, 6, 7]])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(tiny_causal_lm(tmp_path_factory.mktemp("base")))


def configuration(folder, base: str, **changes) -> RunConfig:
    folder.mkdir(exist_ok=True)
    lines = [{"prompt": f"w1 w{n % 9}", "completion": f"w20 w{30 + n % 9}"} for n in range(120)]
    (folder / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "runs": str(folder / "runs"),
        "base": str(folder),
        "data.demonstrations": "d.jsonl",
        "data.heldout_fraction": 0.2,
        "model.path": base,
        "sft.learning_rate": 2e-2,
        "sft.epochs": 3,
        "sft.batch_size": 8,
        "sft.device": "cpu",
        "sft.lora.rank": 4,
    }
    return load(overrides=settings | changes)


@torch.no_grad()
def logits(path: object) -> torch.Tensor:
    return load_causal_lm(str(path), CPU)(TOKENS).logits


def test_stage_writes_an_adapter_that_loads_as_a_model(tmp_path, base):
    config = configuration(tmp_path, base)
    result = train(config)
    folder = config.folder.sft_model
    assert result["train_loss"] < 1.5
    assert 0 < result["trained_parameters"] < result["parameters"]
    tensors = load_file(folder / adapters.WEIGHTS_FILE)
    assert sum(tensor.numel() for tensor in tensors.values()) == result["trained_parameters"]
    assert not (folder / "model.safetensors").exists()
    assert adapters.base_of(str(folder)) == base
    assert (logits(folder) - logits(base)).abs().max() > 0.1
    assert load_tokenizer(str(folder)).eos_token_id == 2


def test_merged_model_is_equal_and_the_run_repeats_bit_for_bit(tmp_path, base):
    found = []
    for merge in (False, True):
        config = configuration(
            tmp_path / str(merge), base, **{"sft.lora.merge": merge, "sft.lora.dropout": 0.2}
        )
        torch.rand(1 + merge)  # the result does not depend on earlier random draws
        train(config)
        found.append(config.folder.sft_model)
    assert (found[1] / "model.safetensors").exists()
    assert not (found[1] / adapters.CONFIG_FILE).exists()
    assert (logits(found[0]) - logits(found[1])).abs().max() < 1e-5


def test_dropout_is_on_only_while_learning(tmp_path, base):
    losses = {}
    for dropout in (0.0, 0.5):
        config = configuration(
            tmp_path / str(dropout), base, **{"sft.lora.dropout": dropout, "sft.epochs": 1}
        )
        train(config)
        lines = [json.loads(line) for line in config.folder.metrics("sft").read_text().splitlines()]
        losses[dropout] = [line["loss"] for line in lines if "loss" in line]
    # Adapters have no effect in the first step, with or without dropout; from the third step A differs.
    assert losses[0.0][0] == losses[0.5][0]
    assert losses[0.0][3] != losses[0.5][3]


def test_lora_requires_a_base_model(tmp_path):
    write_demonstrations(tmp_path)
    changes = {"model.scratch.tokenizer": "words", "data.heldout_fraction": 0.2}
    with pytest.raises(ConfigError, match=r"sft\.lora\.rank.*a \[model\] path to adapt"):
        train(configuration(tmp_path, "", **changes))


@pytest.mark.parametrize("rank", [0, 2])
def test_ppo_starts_from_an_adapter_as_reference(tmp_path, base, rank):
    config = configuration(tmp_path / "sft", base, **{"sft.epochs": 1})
    train(config)
    path = config.folder.sft_model
    changes = {"ppo.updates": 2, "ppo.lora.rank": rank}
    with Run(
        configured(tmp_path / "ppo", path, **changes), path, score=lambda answer: float(answer[0] % 3)
    ) as run:
        result = run.trainer().run()
    lines = [json.loads(line) for line in run.config.folder.metrics("ppo").read_text().splitlines()]
    assert result["mismatch_max"] < 1e-5
    assert abs(lines[0]["kl"]) < 1e-4
    left = run.config.folder.policy_model
    assert adapters.base_of(str(left)) == (str(path) if rank else None)
    assert (logits(left) - logits(path)).abs().max() > 1e-4
