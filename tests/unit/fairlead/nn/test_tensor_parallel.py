"""Models of each architecture, divided between two ranks: what one process computes, or a refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

from tests.architectures import ARCHITECTURES, causal_lm
from tests.tiny import VOCABULARY_SIZE, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from tests.unit.fairlead.nn.divided_models import values

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

_LAYERS = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # So wide that log-probs depend on the context.
    "initializer_range": 0.2,
}
OTHERS: dict[str, PreTrainedConfig] = {
    "gemma3": Gemma3TextConfig(**_LAYERS, sliding_window=64),
    "mistral": MistralConfig(**_LAYERS, sliding_window=None),
    "mixtral": MixtralConfig(**_LAYERS, num_local_experts=4),
    "olmo2": Olmo2Config(**{name: value for name, value in _LAYERS.items() if name != "head_dim"}),
    "phi3": Phi3Config(**{name: value for name, value in _LAYERS.items() if name != "head_dim"}),
    "qwen3_moe": Qwen3MoeConfig(
        **_LAYERS, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1
    ),
}
REFUSED = {
    "gpt2": "transformers has no tensor-parallel plan for 'gpt2'",
    "three_heads": "got 2, allowed: a number that divides the 3 attention heads of",
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the models, with what two ranks computed."""
    folder = tmp_path_factory.mktemp("models")
    for name in ARCHITECTURES:
        causal_lm(name, folder / name)
    for name, config in OTHERS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    tiny_causal_lm(folder / "three_heads", num_attention_heads=3, num_key_value_heads=3, hidden_size=48)
    tiny_reward_model(folder / "reward")
    command = [sys.executable, "-m", "tests.unit.fairlead.nn.divided_models"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder)], env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"})
        for rank in range(2)
    ]
    try:
        assert [rank.wait(1_000) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return folder


@pytest.mark.parametrize("name", [*ARCHITECTURES, *OTHERS, "reward", "three_heads"])
def test_divided_model_computes_what_one_process_computes(computed: Path, name: str):
    found = json.loads((computed / f"{name}.json").read_text())
    if name in REFUSED:
        assert REFUSED[name] in found["error"]
        return
    assert "error" not in found, found
    expected = values(computed / name, 1)
    differences = [abs(a - b) for a, b in zip(found["values"], expected["values"], strict=True)]  # type: ignore[call-overload]
    print(f"{name}: largest difference {max(differences):.2g}")  # noqa: T201
    assert max(differences) <= TOLERANCE
    assert found.get("version") == expected.get("version")
    if "held" in found:
        assert found["held"] < 0.75 * expected["held"]  # type: ignore[operator]
