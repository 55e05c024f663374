"""configs/smollm2.toml: its commands for one GPU are valid, and its plan fits on a laptop and on one GPU."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from fairlead.config import load, parse_overrides
from fairlead.planning.machine import Machine
from fairlead.planning.plan import plan_run

FILE = Path(__file__).parents[4] / "configs" / "smollm2.toml"
GIB = 1 << 30


@pytest.fixture
def smollm2(tmp_path: Path) -> str:
    """The configuration and the header of SmolLM2-135M-Instruct, without its weights."""
    config = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49_152}
    config |= {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8_192}
    shapes = {"model.embed_tokens.weight": [49_152, 576], "model.norm.weight": [576]}
    for layer in range(30):
        block = {
            "self_attn.q_proj": [576, 576],
            "self_attn.k_proj": [192, 576],
            "self_attn.v_proj": [192, 576],
        }
        block |= {"self_attn.o_proj": [576, 576], "mlp.gate_proj": [1536, 576], "mlp.up_proj": [1536, 576]}
        block |= {"mlp.down_proj": [576, 1536], "input_layernorm": [576], "post_attention_layernorm": [576]}
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in block.items()}
    header = json.dumps({name: {"dtype": "F32", "shape": shape} for name, shape in shapes.items()}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    settings = {"model_type": "llama", "tie_word_embeddings": True, **config}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    return str(tmp_path)


def gpu_settings() -> dict[str, Any]:
    """The flags of the commands for one GPU, from the comment at the head of the file."""
    head = FILE.read_text().split("On one GPU", 1)[1].split("\nname =", 1)[0]
    return parse_overrides(re.findall(r"--set (\S+)", head))


@pytest.mark.parametrize("gpu", [False, True])
def test_run_fits(smollm2: str, gpu: bool) -> None:
    settings = {"model.path": smollm2, "reward_model.path": smollm2}
    if gpu:
        settings |= gpu_settings()
    config = load(FILE, overrides=settings)
    assert bool(config.ppo.lora.rank) is not gpu
    machine = Machine(host_bytes=16 * GIB, gpu_bytes=80 * GIB if gpu else 0, num_gpus=int(gpu))
    plan = plan_run(config, machine=machine, prompt_tokens=16)
    assert [stage.stage for stage in plan.stages] == ["sft", "reward-model", "ppo"]
    for stage in plan.stages:
        assert stage.on("cpu") < machine.host_bytes
        assert sum(stage.on_gpus(1)) < machine.gpu_bytes or not gpu
        assert sum(stage.on_gpus(1)) > 0 or not gpu
