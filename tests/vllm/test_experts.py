"""A mixture of experts with vLLM: versions hold one tensor for all experts, a model's files one for each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig

from tests.engine_world import CONTEXT, TOLERANCE, V0, EngineWorld, request
from tests.tiny import VOCABULARY_SIZE, tiny_tokenizer
from tests.vllm.world import serving

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def model_of_experts(folder: Path) -> PreTrainedModel:
    """Save a random model of four experts, two for each token, and return it."""
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


async def test_swaps_of_a_mixture_of_experts(tmp_path: Path):
    model = model_of_experts(tmp_path / "model")
    assert any("experts.gate_up_proj" in name for name in model.state_dict())
    async with serving(tmp_path / "model") as engine:
        world = EngineWorld(engine, model, CollectorRegistry(), tmp_path)
        worst = {}
        for seed in (None, 1, 2):
            version = V0 if seed is None else await world.load(seed)
            completions = await engine.generate(request(samples=4), deadline=None)
            assert {span.version for each in completions for span in each.version_spans} == {version}
            worst[version] = max(world.largest_difference(each) for each in completions)
        print(f"\nlargest differences: {', '.join(f'{value:.1e}' for value in worst.values())}")  # noqa: T201
        assert max(worst.values()) <= TOLERANCE
