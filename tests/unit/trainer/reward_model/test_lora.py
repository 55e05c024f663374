"""Reward models that are adapters with their head: trained here or by peft, and served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from fairlead.config.base import ComputeSection
from fairlead.config.serving import RewardSection
from fairlead.errors import ConfigError, ModelLoadError
from fairlead.nn import adapters
from fairlead.nn.reward_model import load_reward_model
from fairlead.planning.model_size import model_size
from fairlead.types import TextPair, TokenPair
from services.reward.scorer import RewardScorer
from services.reward.triton.export import TritonExport, export
from tests import triton_backend
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from tests.unit.trainer.stage_world import reward_model_run
from trainer.reward_model.train import train

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
"""Raised by peft."""
CPU = ComputeSection(device="cpu")
TOKENS = torch.tensor([[1, 5, 6, 7]])
LORA = {"lora.rank": 4, "learning_rate": 2e-2, "epochs": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(tiny_causal_lm(tmp_path_factory.mktemp("base"), tie_word_embeddings=False))


def score(path: Path) -> float:
    [found] = RewardScorer(str(path), RewardSection(device="cpu")).score([tuple(TOKENS[0].tolist())])
    assert isinstance(found, float)
    return found


@pytest.mark.parametrize("members", [1, 2])
def test_stage_trains_an_adapter_with_its_head_and_merging_changes_no_score(tmp_path, base, members):
    results, scores = [], []
    for merge in (False, True):
        config = reward_model_run(
            tmp_path / str(merge),
            comparisons=120,
            path=base,
            ensemble_size=members,
            **LORA,
            **{"lora.merge": merge, "lora.dropout": 0.2},
        )
        torch.rand(1 + merge)  # the result does not depend on earlier random draws
        results.append(train(config))
        scores.append(score(config.folder.reward_model))
        first = config.folder.reward_model / ("member-0" if members > 1 else "")
        assert (first / adapters.CONFIG_FILE).exists() is not merge
        assert (first / "model.safetensors").exists() is merge
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    for result in results:
        assert result["accuracy"] > 0.9
    folder = tmp_path / "False" / "runs" / "run" / "reward_model" / ("member-0" if members > 1 else "")
    tensors = load_file(folder / adapters.WEIGHTS_FILE)
    assert tensors["base_model.model.score.weight"].shape == (1, 32)
    # The bias of the head is in config.json.
    assert results[0]["trained_parameters"] == members * (sum(map(torch.numel, tensors.values())) + 1)
    settings = json.loads((folder / "config.json").read_text())
    assert {"fairlead_reward_bias", "fairlead_answer_end"} <= settings.keys()


def test_adapter_is_read_by_peft_and_exported(tmp_path, base):
    config = reward_model_run(tmp_path, comparisons=60, path=base, **LORA)
    train(config)
    folder = config.folder.reward_model
    reward = load_reward_model(str(folder), CPU)
    assert reward.is_ours
    assert reward.answer_end == {"conversation": [2], "text": [2]}
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    theirs = PeftModel.from_pretrained(plain, folder)
    with torch.inference_mode():
        expected = float(theirs(TOKENS).logits) + reward.head.bias.item()
    assert score(folder) == pytest.approx(expected, abs=1e-5)
    triton = triton_backend.load(export(TritonExport(model=str(folder), target=tmp_path / "triton")))
    [response] = triton.execute([triton_backend.tokens([tuple(TOKENS[0].tolist())])])
    assert response.of("rewards")[0] == pytest.approx(expected, abs=1e-5)
    assert model_size(str(folder)).body == model_size(base).body


def by_peft(base: str, folder: Path, *, labels: int = 1, head: bool = True) -> float:
    """Save an adapter as other trainers do; return its score of TOKENS."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, pad_token_id=0)
        settings = LoraConfig(
            task_type=TaskType.SEQ_CLS if head else None,
            r=2,
            target_modules=["q_proj", "v_proj"],
            modules_to_save=["score"] if head else None,
            init_lora_weights=False,
            base_model_name_or_path=base,
        )
        model = get_peft_model(model, settings)
    if head:
        torch.nn.init.normal_(model.base_model.model.score.weight)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with torch.inference_mode():
        return float(model(TOKENS).logits[0, 0])


def test_adapter_of_another_trainer_is_served_with_its_head(tmp_path, base):
    expected = by_peft(base, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "config.json").exists()
    assert score(tmp_path / "adapter") == pytest.approx(expected, abs=1e-5)
    scorer = RewardScorer(str(tmp_path / "adapter"), RewardSection(device="cpu"))
    assert scorer.encode([TextPair("w1", "w2"), TokenPair((1,), (5,))])
    # In bfloat16 it is added to its base in float32 first, as if the merged model were served.
    whole = load_reward_model(str(tmp_path / "adapter"), CPU)
    whole.model.save_pretrained(tmp_path / "whole")
    exact = ComputeSection(device="cpu", dtype="bfloat16")
    merged, adapter = (load_reward_model(str(tmp_path / name), exact) for name in ("whole", "adapter"))
    with torch.inference_mode():
        lengths = torch.tensor([4])
        assert torch.equal(adapter.scores(TOKENS, lengths), merged.scores(TOKENS, lengths))


def test_adapter_without_a_head_or_with_several_labels_is_rejected(tmp_path, base):
    by_peft(base, tmp_path / "bare", head=False)
    by_peft(base, tmp_path / "two", labels=2)
    with pytest.raises(
        ModelLoadError, match=r"an adapter of LlamaForCausalLM.*modules_to_save = \[.score.\]"
    ):
        load_reward_model(str(tmp_path / "bare"), CPU)
    with pytest.raises(ModelLoadError, match=r"two' has 2 labels; a reward model has 1"):
        load_reward_model(str(tmp_path / "two"), CPU)
    (tmp_path / "two" / adapters.WEIGHTS_FILE).write_bytes(b"damaged")
    with pytest.raises(ModelLoadError, match="two"):
        load_reward_model(str(tmp_path / "two"), CPU)
    (tmp_path / "two" / adapters.WEIGHTS_FILE).rename(tmp_path / "two" / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match=r"pickle \(adapter_model.bin\)"):
        load_reward_model(str(tmp_path / "two"), CPU)


def test_layers_that_do_not_exist_are_rejected_before_training(tmp_path, base):
    changes = {"lora.rank": 2, "lora.target_modules": ("query",)}
    with pytest.raises(ConfigError, match=r"reward_model.lora.target_modules: got 'query'.*q_proj"):
        train(reward_model_run(tmp_path, comparisons=20, path=base, **changes))
