"""Proposals for models of 1, 8 and 70 billion parameters on 1, 8 and 16 GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.config import RunConfig, load
from fairlead.config.run import parse_overrides
from fairlead.config.saving import as_toml
from fairlead.planning.machine import Machine
from fairlead.planning.plan import plan_run
from fairlead.planning.proposal import Proposal, obstacle, propose
from tests import model_shapes

MODELS = {"1B": "Llama-3.2-1B", "8B": "Llama-3.1-8B", "70B": "Llama-3.1-70B"}


def sections(folder: Path, name: str) -> dict[str, object]:
    """Return the settings of a run whose models all have this size."""
    model = {"path": str(model_shapes.write(folder / name, MODELS[name])), "max_sequence_tokens": 2_048}
    reward = model_shapes.write(folder / f"reward-{name}", MODELS[name], is_reward=True)
    return {
        "runs": str(folder),
        "policy": model | {"max_slots": 64},
        "reward": model | {"path": str(reward)},
        "reference": model,
        "sampling": {"max_new_tokens": 1_024},
    }


def proposed(folder: Path, name: str, gpus: int, *, gpu_gib: int = 80) -> Proposal:
    config = RunConfig(**sections(folder, name))  # type: ignore[arg-type]
    nodes = -(-gpus // 8)
    machine = Machine(host_bytes=2 << 40, gpu_bytes=gpu_gib << 30, num_gpus=gpus // nodes)
    return propose(config, machine=machine, nodes=nodes, prompt_tokens=512)


LESS = {"ppo.gradient_checkpointing": True}
"""Recomputed blocks, before smaller micro-batches."""
ADAPTERS = {"ppo.lora.rank": 16}
HALVES = {"reward.tensor_parallel": 2, "reference.tensor_parallel": 2, "policy.engine": "vllm"}
SMALL_BATCHES = {
    "reward.batching.max_batch_tokens": 4_096,
    "reference.batching.max_batch_tokens": 4_096,
    "policy.max_slots": 32,
}
PROPOSALS: dict[tuple[str, int], dict[str, object]] = {
    ("1B", 1): LESS,
    ("1B", 8): {"ranks.per_node": 5},
    ("1B", 16): {"ranks.nodes": 2, "ranks.per_node": 6},
    ("8B", 8): {"ranks.per_node": 5} | LESS,
    ("8B", 16): {"ranks.nodes": 2, "ranks.per_node": 6} | LESS,
    # One GPU holds four copies of the weights, so vLLM gets just what it needs.
    ("8B", 1): {
        "policy.max_slots": 16,
        "policy.engine": "vllm",
        "policy.vllm.tensor_parallel_size": 1,
        "policy.vllm.gpu_memory_utilization": 0.23,
        "reward.batching.max_batch_tokens": 2_048,
        "reference.batching.max_batch_tokens": 2_048,
        "ppo.max_micro_batch_tokens": 8_192,
    }
    | ADAPTERS
    | LESS,
    # Two GPUs for each service, and two that train, with the base in the memory of the host.
    ("70B", 8): {"policy.vllm.tensor_parallel_size": 2, "ppo.offload": True, "ranks.per_node": 2}
    | HALVES
    | SMALL_BATCHES
    | ADAPTERS
    | LESS,
    # A node for the policy and four ranks, another for reward, reference and four ranks.
    ("70B", 16): {
        "policy.vllm.tensor_parallel_size": 4,
        "ranks.nodes": 2,
        "ranks.per_node": 4,
        "ppo.max_micro_batch_tokens": 8_192,
    }
    | HALVES
    | ADAPTERS
    | LESS,
}
"""Proposals for GPUs of 80 GiB, without data types."""


@pytest.mark.parametrize(("name", "gpus"), PROPOSALS)
def test_proposal_fits_when_it_is_pasted(name: str, gpus: int, tmp_path: Path):
    found = proposed(tmp_path, name, gpus)
    kept = {key: value for key, value in found.settings.items() if not key.endswith(".dtype")}
    assert (kept, found.obstacle) == (PROPOSALS[name, gpus], "")
    # As a file with these flags, it is loaded, and its plan fits.
    file = tmp_path / "run.toml"
    file.write_text(as_toml(RunConfig(**sections(tmp_path / "again", name)), without_defaults=True))  # type: ignore[arg-type]
    flags = [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in found.settings.items()]
    plan = plan_run(
        load(file, overrides=parse_overrides(flags)), machine=found.plan.machine, prompt_tokens=512
    )
    assert obstacle(plan) == ""
    assert all("disk space" in warning for warning in plan.warnings("ppo"))


def test_what_does_not_fit_is_named_after_everything_was_tried(tmp_path: Path):
    found = proposed(tmp_path, "70B", 1)
    assert found.settings["ppo.lora.rank"] == 16
    assert found.settings["ppo.max_micro_batch_tokens"] == 2_048
    assert found.obstacle.startswith(
        "policy: vLLM may use 1 of each GPU (policy.vllm.gpu_memory_utilization); "
    )
    less = proposed(tmp_path / "smaller", "8B", 1, gpu_gib=60)
    assert less.obstacle.startswith("a GPU would hold trainer ")


def test_pods_have_space_on_the_nodes(tmp_path: Path):
    settings = sections(tmp_path, "8B")
    settings["policy"] |= {"engine": "vllm", "vllm": {"tensor_parallel_size": 4}}  # type: ignore[operator]
    machine = Machine(host_bytes=2 << 40, gpu_bytes=80 << 30, num_gpus=8)
    found = propose(RunConfig(**settings), machine=machine, nodes=2, prompt_tokens=512)  # type: ignore[arg-type]
    assert next(one for one in found.plan.stage("ppo").processes if one.name == "policy").gpus == 4
    # Ten GPUs are left, but with five of them on each node the policy would have no node with four.
    assert (found.settings["ranks.per_node"], found.obstacle) == (4, "")
