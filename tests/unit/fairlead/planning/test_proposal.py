"""Proposals for models of 1, 8 and 70 billion parameters on 1, 8 and 16 GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.config import RunConfig
from fairlead.planning.machine import Machine
from fairlead.planning.process import RUNTIME_BYTES
from fairlead.planning.proposal import Proposal, propose
from tests import model_shapes

MODELS = {"1B": "Llama-3.2-1B", "8B": "Llama-3.1-8B", "70B": "Llama-3.1-70B"}


def proposed(folder: Path, name: str, gpus: int, *, gpu_gib: int = 80) -> Proposal:
    model = {"path": str(model_shapes.write(folder / name, MODELS[name]))}
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
    [("8B", 1, "trainer"), ("70B", 8, "trainer"), ("70B", 16, "policy")],
)
def test_what_does_not_fit_is_named_after_everything_was_tried(
    name: str, gpus: int, largest: str, tmp_path: Path
):
    found = proposed(tmp_path, name, gpus)
    assert found.settings["ppo.lora.rank"] == 16
    assert found.settings["ppo.max_micro_batch_tokens"] == 2_048
    assert found.obstacle.startswith(f"a GPU would hold {largest}")
    assert "policy" in found.obstacle


def test_adapters_are_proposed_if_all_weights_do_not_fit(tmp_path: Path):
    found = proposed(tmp_path, "8B", 1, gpu_gib=141)
    assert (found.settings["ppo.lora.rank"], found.obstacle) == (16, "")


def test_policy_of_vllm_is_divided_among_its_gpus(tmp_path: Path):
    model = {"path": str(model_shapes.write(tmp_path / "70B", MODELS["70B"]))}
    settings = {**model, "max_sequence_tokens": 2_048, "dtype": "bfloat16"}
    vllm = {"engine": "vllm", "vllm": {"tensor_parallel_size": 4}}
    config = RunConfig(runs=tmp_path, policy=settings | vllm, reward=settings, reference=settings)  # type: ignore[arg-type]
    machine = Machine(host_bytes=8 << 40, gpu_bytes=80 << 30, num_gpus=8)
    found = propose(config, machine=machine, nodes=2, prompt_tokens=512)
    processes = {process.name: process for process in found.plan.stage("ppo").processes}
    assert processes["policy"].gpus == 4
    assert processes["policy"].weights == pytest.approx(70.6e9 * 2 / 4, rel=0.03)
    assert processes["policy"].gpu_bytes == int(0.92 * (80 << 30)) + RUNTIME_BYTES["cuda"]
    # Sixteen GPUs less four, one and one.
    assert found.settings["ranks.per_node"] == 5
    assert processes["trainer"].gpu_bytes < 80 << 30
    assert found.obstacle.startswith("a GPU would hold re")  # reward and reference have one GPU each
