"""Adapters against manual computation, loading of their folders, and rejected ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from fairlead.config.base import ComputeSection
from fairlead.config.training import DropoutLoraSection, LoraSection
from fairlead.errors import ConfigError, ModelLoadError
from fairlead.nn import adapters
from fairlead.nn.loading import load_causal_lm, load_tokenizer
from fairlead.nn.reward_model import load_reward_model
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from tests.unit.fairlead.nn.test_nn import run_conversion

CPU = ComputeSection(device="cpu")
LORA = LoraSection(rank=4, alpha=8.0)
TOKENS = torch.tensor([[1, 5, 6, 7, 30, 2]])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(tiny_causal_lm(tmp_path_factory.mktemp("base")))


def adapted(base: str, section: LoraSection = LORA, **settings):
    """With adapters that say something: fresh ones are 0."""
    model = load_causal_lm(base, CPU)
    adapters.add(model, section, base=base, field="ppo.lora", seed=3, **settings)
    draw = torch.Generator().manual_seed(7)
    for tensor in adapters.tensors(model).values():
        tensor.data = torch.randn(tensor.shape, generator=draw).to(tensor.dtype) * 0.2
    return model


def saved(base: str, folder: Path, section: LoraSection = LORA, *, merge: bool = False) -> str:
    adapters.save(adapted(base, section), folder, merge=merge)
    return str(folder)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS).logits


def test_new_adapters_change_nothing_and_only_they_are_trained(base):
    plain, model = load_causal_lm(base, CPU), load_causal_lm(base, CPU)
    adapters.add(model, LORA, base=base, field="ppo.lora", seed=3)
    assert adapters.is_adapted(model)
    assert not adapters.is_adapted(plain)
    assert torch.equal(logits(model), logits(plain))
    model(TOKENS).logits.sum().backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, p in model.named_parameters() if p.grad is not None}
    # Seven matrices in each of two layers, and neither embedding nor output layer.
    assert len(learning) == len(adapters.tensors(model)) == 2 * 2 * 7
    assert not any("lm_head" in name or "embed" in name for name in learning)


def test_adapter_initialisation_depends_only_on_its_seed(base):
    models = []
    for seed in (3, 3, 4):
        torch.rand(len(models) + 1)
        model = load_causal_lm(base, CPU)
        adapters.add(model, LORA, base=base, field="ppo.lora", seed=seed)
        models.append(adapters.tensors(model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not all(torch.equal(models[0][name], models[2][name]) for name in models[0])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own
def test_saved_adapter_loads_like_manual_weights_and_in_peft(base, tmp_path):
    model = adapted(base)
    adapters.save(model, tmp_path / "a", merge=False)
    by_hand = load_causal_lm(base, CPU)
    parameters = dict(by_hand.named_parameters())
    found = load_file(tmp_path / "a" / adapters.WEIGHTS_FILE)
    with torch.no_grad():
        for name, tensor in found.items():
            if name.endswith(".lora_A.weight"):
                layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                up = found[name.replace("lora_A", "lora_B")]
                parameters[f"{layer}.weight"] += 8.0 / 4 * up @ tensor
    expected = logits(by_hand)
    assert (expected - logits(load_causal_lm(base, CPU))).abs().max() > 1e-2
    loaded = load_causal_lm(str(tmp_path / "a"), CPU)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "a").eval()
    adapters.save(model, tmp_path / "whole", merge=True)
    whole = load_causal_lm(str(tmp_path / "whole"), CPU)
    for one in (model, loaded, theirs, whole):
        assert (logits(one) - expected).abs().max() < 1e-5
    assert loaded.state_dict().keys() == by_hand.state_dict().keys()
    for one in (loaded, whole):
        assert not adapters.is_adapted(one)
        assert all(parameter.requires_grad for parameter in one.parameters())
    assert not (tmp_path / "whole" / adapters.CONFIG_FILE).exists()
    assert torch.equal(logits(model), logits(adapted(base)))  # saving left it as it was
    half = ComputeSection(device="cpu", dtype="bfloat16")
    one, other = (load_causal_lm(str(tmp_path / name), half) for name in ("a", "whole"))
    assert one.dtype == torch.bfloat16
    # Rotary frequencies stay in float32, as in a whole model.
    assert torch.equal(logits(one), logits(other))


def test_adapter_on_an_adapter_and_reward_model_from_one(base, tmp_path):
    first = saved(base, tmp_path / "first")
    second = saved(first, tmp_path / "second", LoraSection(rank=2, alpha=2.0))
    assert adapters.base_of(second) == str(tmp_path / "first")
    changed = logits(load_causal_lm(second, CPU))
    assert (changed - logits(load_causal_lm(first, CPU))).abs().max() > 1e-3
    # The tokenizer is the base's, until the folder has its own.
    assert load_tokenizer(second).pad_token == "<pad>"
    tiny_tokenizer(pad_is_eos=True).save_pretrained(second)
    assert load_tokenizer(second).pad_token == "</s>"
    reward = load_reward_model(first, CPU, fresh_head=True)
    language = load_causal_lm(first, CPU)
    with torch.no_grad():
        assert torch.equal(reward.body(TOKENS)[0], language.base_model(TOKENS)[0])


def test_adapters_on_transposed_matrices(tmp_path):
    settings = {
        "vocab_size": 60,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    GPT2LMHeadModel(GPT2Config(**settings)).save_pretrained(tmp_path / "gpt2")
    model = adapted(str(tmp_path / "gpt2"))
    adapters.save(model, tmp_path / "a", merge=False)
    loaded = load_causal_lm(str(tmp_path / "a"), CPU)
    assert (logits(loaded) - logits(load_causal_lm(str(tmp_path / "gpt2"), CPU))).abs().max() > 1e-2
    assert (logits(loaded) - logits(model)).abs().max() < 1e-5


def test_target_modules_are_chosen_by_name_and_unknown_names_rejected(base):
    model = adapted(base, LoraSection(rank=4, target_modules=("q_proj", "layers.1.mlp.up_proj")))
    layers = {
        name.removeprefix("base_model.model.").partition(".lora_")[0] for name in adapters.tensors(model)
    }
    assert layers == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    }
    for wrong in ("query", "lm_head", "embed_tokens", "input_layernorm"):
        with pytest.raises(ConfigError, match=rf"ppo\.lora\.target_modules.*'{wrong}'.*q_proj, up_proj"):
            adapted(base, LoraSection(rank=4, target_modules=("q_proj", wrong)))


SMALL = {
    **{"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2},
    **{"bos_token_id": 1, "eos_token_id": 2},
}
OF_EXPERTS = {
    "Mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4)),
    "Qwen2-MoE": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=32)
    ),
}


@pytest.mark.parametrize("family", OF_EXPERTS)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own
def test_experts_are_reported_and_adapted_by_name(family, tmp_path, caplog):
    made = OF_EXPERTS[family]()
    made.save_pretrained(tmp_path / "base")
    base = str(tmp_path / "base")
    weights = {name: parameter for name, parameter in made.named_parameters() if parameter.ndim > 1}
    experts = sum(one.numel() for name, one in weights.items() if ".experts." in name)
    total = sum(parameter.numel() for parameter in made.parameters())
    with caplog.at_level("INFO"):
        adapted(base)
    assert f"`all-linear` adapts no experts, which have {experts:,} of {total:,} parameters" in caplog.text
    names = tuple(json.loads(caplog.text[caplog.text.rindex("set it to ") :].removeprefix("set it to ")))
    caplog.clear()
    with caplog.at_level("INFO"):
        model = adapted(base, LoraSection(rank=4, alpha=8.0, target_modules=names))
    left = sum(
        one.numel() for name, one in made.named_parameters() if "norm" in name or "mlp.gate." in name
    ) + sum(one.numel() for name, one in weights.items() if "embed" in name or "lm_head" in name)
    assert f"layers with {total - left:,} of {total:,} parameters" in caplog.text
    assert "adapts no experts" not in caplog.text
    model(TOKENS).logits.sum().backward()
    assert all(tensor.grad.abs().max() > 0 for tensor in adapters.tensors(model).values())
    plain = load_causal_lm(base, CPU)
    adapters.save(model, tmp_path / "a", merge=False)
    adapters.save(model, tmp_path / "whole", merge=True)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "a").eval()
    loaded = [load_causal_lm(str(tmp_path / name), CPU) for name in ("a", "whole")]
    assert (logits(model) - logits(plain)).abs().max() > 1e-2
    for one in (*loaded, theirs):
        assert (logits(one) - logits(model)).abs().max() < 1e-5
    assert all(one.state_dict().keys() == plain.state_dict().keys() for one in loaded)
    only_linear = adapters.config(adapted(base))
    assert adapters.differences(adapters.config(model), only_linear)
    dropout = DropoutLoraSection(rank=4, dropout=0.1, target_modules=("experts.down_proj",))
    with pytest.raises(
        ConfigError, match=r"^ppo\.lora\.dropout: got 0\.1, allowed: 0 with adapters of experts"
    ):
        adapted(base, dropout)


def test_fingerprint_depends_only_on_the_weights(base, tmp_path):
    shutil.copytree(base, tmp_path / "elsewhere")
    assert adapters.fingerprint(base) == adapters.fingerprint(str(tmp_path / "elsewhere"))
    other = tiny_causal_lm(tmp_path / "other", seed=1)
    assert adapters.fingerprint(str(other)) != adapters.fingerprint(base)
    on_one, on_other = saved(base, tmp_path / "a"), saved(str(other), tmp_path / "b")
    # The same adapter on another base is another model.
    assert (
        load_file(Path(on_one) / adapters.WEIGHTS_FILE).keys()
        == load_file(Path(on_other) / adapters.WEIGHTS_FILE).keys()
    )
    assert len({adapters.fingerprint(path) for path in (base, on_one, on_other)}) == 3


def truncate(folder: Path) -> None:
    file = folder / adapters.WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])


def lose_a_tensor(folder: Path) -> None:
    found = load_file(folder / adapters.WEIGHTS_FILE)
    found.pop(next(iter(found)))
    save_file(found, folder / adapters.WEIGHTS_FILE)


def gain_a_tensor(folder: Path) -> None:
    found = load_file(folder / adapters.WEIGHTS_FILE)
    name = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"
    save_file(found | {name: torch.ones(4, 32)}, folder / adapters.WEIGHTS_FILE)


def change_shapes(folder: Path) -> None:
    found = load_file(folder / adapters.WEIGHTS_FILE)
    save_file(
        {name: tensor[:, :-1].contiguous() for name, tensor in found.items()}, folder / adapters.WEIGHTS_FILE
    )


def not_a_number(folder: Path) -> None:
    found = load_file(folder / adapters.WEIGHTS_FILE)
    save_file({name: tensor * float("nan") for name, tensor in found.items()}, folder / adapters.WEIGHTS_FILE)


def no_weights(folder: Path) -> None:
    (folder / adapters.WEIGHTS_FILE).unlink()


@pytest.mark.parametrize(
    "damage", [truncate, lose_a_tensor, gain_a_tensor, change_shapes, not_a_number, no_weights]
)
def test_damaged_adapter_is_rejected(base, tmp_path, damage):
    path = saved(base, tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(ModelLoadError, match=f"the adapter '{path}'"):
        load_causal_lm(path, CPU)


def test_pickled_adapter_is_refused(base, tmp_path):
    path = saved(base, tmp_path / "a")
    torch.save(load_file(tmp_path / "a" / adapters.WEIGHTS_FILE), tmp_path / "a" / "adapter_model.bin")
    (tmp_path / "a" / adapters.WEIGHTS_FILE).unlink()
    with pytest.raises(ModelLoadError, match=r"only as pickle \(adapter_model\.bin\)") as refused:
        load_causal_lm(path, CPU)
    run_conversion(refused.value)
    load_causal_lm(path, CPU)


def test_adapter_without_its_base_is_rejected(base, tmp_path):
    path = saved(base, tmp_path / "a")
    file = tmp_path / "a" / adapters.CONFIG_FILE
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ModelLoadError, match=r"the adapter '.*/a' needs its base: no model folder '.*gone'"):
        load_causal_lm(path, CPU)
    other = tiny_causal_lm(tmp_path / "wide", hidden_size=48)
    file.write_text(json.dumps(settings | {"base_model_name_or_path": str(other)}))
    with pytest.raises(ModelLoadError, match=r"to its base '.*wide'.*that it was trained on that base"):
        load_causal_lm(path, CPU)
    for broken in ("{", json.dumps({"peft_type": "LORA"}), json.dumps({"base_model_name_or_path": None})):
        file.write_text(broken)
        with pytest.raises(ModelLoadError, match=r"the adapter '.*/a': "):
            load_causal_lm(path, CPU)
