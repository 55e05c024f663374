"""Proposals for models of 1, 8 and 70 billion parameters on 1, 8 and 16 GPUs."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from fairlead.config import RunConfig
from fairlead.planning.machine import Machine
from fairlead.planning.proposal import Proposal, propose

SHAPES = {
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}
"""Llama 3 of these sizes, with the embedding tied in the smallest."""


def llama(folder: Path, name: str) -> Path:
    """Write configuration and header of a model, without its weights."""
    config = {"model_type": "llama", "num_key_value_heads": 8, "vocab_size": 128_256, **SHAPES[name]}
    config |= {"max_position_embeddings": 8_192, "tie_word_embeddings": name == "1B"}
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    assert isinstance(hidden, int)
    keys = hidden // config["num_attention_heads"] * 8  # type: ignore[operator]
    shapes = {"model.embed_tokens.weight": [128_256, hidden], "model.norm.weight": [hidden]}
    if name != "1B":
        shapes["lm_head.weight"] = [128_256, hidden]
    for layer in range(config["num_hidden_layers"]):  # type: ignore[call-overload]
        block = {"q": [hidden, hidden], "k": [keys, hidden], "v": [keys, hidden], "o": [hidden, hidden]}
        block |= {"gate": [wide, hidden], "up": [wide, hidden], "down": [hidden, wide]}
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in block.items()}
    header = json.dumps({key: {"dtype": "BF16", "shape": shape} for key, shape in shapes.items()}).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder


def proposed(folder: Path, name: str, gpus: int, *, gpu_gib: int = 80) -> Proposal:
    model = {"path": str(llama(folder / name, name))}
    config = RunConfig(
        runs=folder,
        policy={**model, "max_sequence_tokens": 2_048, "max_slots": 64},
        reward={**model, "max_sequence_tokens": 2_048},
        reference={**model, "max_sequence_tokens": 2_048},
        sampling={"max_new_tokens": 1_024},
    )  # type: ignore[arg-type]
    nodes = -(-gpus // 8)
    machine = Machine(host_bytes=2 << 40, gpu_bytes=gpu_gib << 30, num_gpus=gpus // nodes)
    return propose(config, machine=machine, nodes=nodes, prompt_tokens=512)


LESS = {"ppo.gradient_checkpointing": True}
"""Recomputed blocks, before smaller micro-batches."""


@pytest.mark.parametrize(
    ("name", "gpus", "settings"),
    [
        ("1B", 1, LESS),
        ("1B", 8, {"ranks.per_node": 5}),
        ("8B", 8, {"ranks.per_node": 5} | LESS),
        ("8B", 16, {"ranks.nodes": 2, "ranks.per_node": 6} | LESS),
    ],
)
def test_all_weights_are_trained_if_they_fit(
    name: str, gpus: int, settings: dict[str, object], tmp_path: Path
):
    found = proposed(tmp_path, name, gpus)
    kept = {key: value for key, value in found.settings.items() if not key.endswith(".dtype")}
    assert (kept, found.obstacle) == (settings, "")
    assert all("disk space" in warning for warning in found.plan.warnings("ppo"))


@pytest.mark.parametrize(
    ("name", "gpus", "largest"),
    [("8B", 1, "GPU 0 would need"), ("70B", 8, "GPU 0 would need"), ("70B", 16, "policy would need")],
)
def test_what_does_not_fit_is_named_after_everything_was_tried(
    name: str, gpus: int, largest: str, tmp_path: Path
):
    found = proposed(tmp_path, name, gpus)
    assert found.settings["ppo.lora.rank"] == 16
    assert found.settings["ppo.max_micro_batch_tokens"] == 2_048
    assert found.obstacle.startswith(largest)
    assert "the largest process is policy with" in found.obstacle


def test_adapters_are_proposed_if_all_weights_do_not_fit(tmp_path: Path):
    found = proposed(tmp_path, "8B", 1, gpu_gib=141)
    assert (found.settings["ppo.lora.rank"], found.obstacle) == (16, "")


def test_policy_of_vllm_is_divided_among_its_gpus(tmp_path: Path):
    model = {"path": str(llama(tmp_path / "70B", "70B"))}
    settings = {**model, "max_sequence_tokens": 2_048, "dtype": "bfloat16"}
    vllm = {"engine": "vllm", "vllm": {"tensor_parallel_size": 4}}
    config = RunConfig(runs=tmp_path, policy=settings | vllm, reward=settings, reference=settings)  # type: ignore[arg-type]
    machine = Machine(host_bytes=8 << 40, gpu_bytes=80 << 30, num_gpus=8)
    found = propose(config, machine=machine, nodes=2, prompt_tokens=512)
    processes = {process.name: process for process in found.plan.stage("ppo").processes}
    assert processes["policy"].gpus == 4
    assert processes["policy"].weights == pytest.approx(70.6e9 * 2 / 4, rel=0.01)
    assert processes["policy"].gpu_bytes < 80 << 30
    # Sixteen GPUs less four, one and one.
    assert found.settings["ranks.per_node"] == 5
    assert processes["trainer"].gpu_bytes < 80 << 30
    assert "the largest process is re" in found.obstacle  # reward and reference have one GPU each
