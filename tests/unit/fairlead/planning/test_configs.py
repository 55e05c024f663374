"""The files in configs/ for real models, planned for the GPUs that they are written for, and for fewer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from fairlead.config import load
from fairlead.planning.machine import Machine
from fairlead.planning.plan import RunPlan, plan_run
from fairlead.planning.process_memory import RUNTIME_BYTES
from fairlead.planning.proposal import obstacle
from tests import model_shapes

CONFIGS = Path(__file__).parents[4] / "configs"


def planned(
    name: str,
    models: Mapping[str, str],
    folder: Path,
    *,
    gpus: int,
    gpu_gib: int,
    settings: Mapping[str, object] | None = None,
) -> RunPlan:
    """Return the plan of a file, with models of the shapes of those that it names."""
    paths = {
        key: str(
            model_shapes.write(folder / key.replace(".", "/"), shape, is_reward=key.startswith("reward."))
        )
        for key, shape in models.items()
    }
    config = load(CONFIGS / name, overrides={"runs": str(folder / "runs")} | paths | dict(settings or {}))
    machine = Machine(host_bytes=2 << 40, gpu_bytes=gpu_gib << 30, num_gpus=gpus)
    return plan_run(
        config,
        machine=machine,
        prompt_tokens=config.policy.max_sequence_tokens - config.sampling.max_new_tokens,
    )


LLAMA_8B = {"model.path": "Llama-3.1-8B"}
LLAMA_70B = {"model.path": "Llama-3.1-70B", "reward_model.path": "Llama-3.1-8B"}
QWEN = dict.fromkeys(("model.path", "policy.path", "reference.path"), "Qwen2.5-0.5B") | {
    "reward.path": "Qwen3-0.6B"
}


def test_qwen_fits_on_one_gpu_of_24_gib_and_not_of_16(tmp_path: Path):
    plan = planned("qwen.toml", QWEN, tmp_path, gpus=1, gpu_gib=24)
    assert [warning for warning in plan.warnings() if "disk space" not in warning] == []
    assert obstacle(plan) == ""
    assert list(plan.loads(plan.stage("ppo"))[0]) == ["trainer", "policy-0", "reward-0", "reference-0"]
    small = dataclasses.replace(plan, machine=dataclasses.replace(plan.machine, gpu_bytes=16 << 30))
    assert small.warnings("ppo")[0].startswith("ppo needs about 20.8 GiB of GPU memory (trainer 4.65 GiB, ")


def test_llama8b_fits_on_eight_gpus_and_not_on_seven(tmp_path: Path):
    plan = planned("llama8b.toml", LLAMA_8B, tmp_path, gpus=8, gpu_gib=79)
    assert [warning for warning in plan.warnings() if "disk space" not in warning] == []
    assert obstacle(plan) == ""
    using = [list(names) for names in plan.loads(plan.stage("ppo"))]
    assert using == [["trainer"]] * 5 + [["policy-0"], ["reward-0"], ["reference-0"]]
    assert any("the cache of vLLM holds" in note for note in plan.notes)
    seven = dataclasses.replace(plan, machine=dataclasses.replace(plan.machine, num_gpus=7))
    (warning, _) = seven.warnings("ppo")
    assert warning.startswith(
        "ppo needs about 95.3 GiB of memory of one GPU (policy-0 71.6 GiB, reference-0 "
    )


def test_llama70b_fits_on_four_nodes_of_eight_gpus(tmp_path: Path):
    plan = planned("llama70b.toml", LLAMA_70B, tmp_path, gpus=8, gpu_gib=79)
    assert [warning for warning in plan.warnings() if "disk space" not in warning] == []
    assert obstacle(plan) == ""
    limits_gib = {"trainer": 512, "sft": 512, "reward-model": 512}
    for process in (process for stage in plan.stages for process in stage.processes):
        # The memory of pods in k8s/overlays/large.
        assert process.pod_bytes < limits_gib.get(process.name, 64) << 30, process.name
    assert plan.notes[-1] == "GPUs in all: 25 (trainer 16, policy 8, reward 1)"


def test_llama70b_does_not_fit_on_fewer_gpus(tmp_path: Path):
    fewer = {
        "reference.engine": "local",
        "reference.dtype": "bfloat16",
        "policy.vllm.tensor_parallel_size": 1,
    }
    plan = planned("llama70b.toml", LLAMA_70B, tmp_path, gpus=4, gpu_gib=79, settings=fewer)
    policy, gpus, ranks, _ = plan.warnings("ppo")
    assert policy.startswith(
        "policy: vLLM may use 0.9 of each GPU (policy.vllm.gpu_memory_utilization); weights "
    )
    assert gpus.startswith("ppo needs about 136 GiB of memory of one GPU (reference ")
    assert ranks == "ppo has 8 ranks on each machine (ranks.per_node), but a machine has 4"


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_that_layers_cannot_be_divided_among_are_named(tmp_path: Path, ranks: int):
    settings = {"ranks.per_node": ranks, "ranks.tensor_parallel": 2}
    plan = planned("llama8b.toml", LLAMA_8B, tmp_path, gpus=8, gpu_gib=79, settings=settings)
    problem = f"trainer: ranks.tensor_parallel = 2 does not divide the number of ranks, {ranks}"
    assert problem in plan.warnings("ppo")


def test_settings_that_place_a_model_are_counted(tmp_path: Path):
    settings = {"local.gpus": {"reference-0": "6"}, "ppo.offload": True, "ranks.tensor_parallel": 5}
    plan = planned("llama8b.toml", LLAMA_8B, tmp_path, gpus=8, gpu_gib=79, settings=settings)
    ppo = plan.stage("ppo")
    using = [list(names) for names in plan.loads(ppo)]
    assert using == [["trainer"]] * 5 + [["policy-0"], ["reward-0", "reference-0"], []]
    trainer = ppo.processes[0]
    assert trainer.problem == "ranks.tensor_parallel = 5 does not divide the 32 attention heads"
    # Weights, gradients and Adam's state are in main memory instead of on the GPU.
    state = trainer.weights + trainer.gradients + trainer.optimizer
    assert trainer.gpu_bytes == trainer.model_bytes - state + RUNTIME_BYTES["cuda"]
    assert trainer.on("cpu") == 5 * (trainer.runtime + max(state, trainer.loading))


def test_trainer_that_cannot_divide_key_value_heads_is_named(tmp_path: Path):
    settings = {"ranks.per_node": 16, "ranks.tensor_parallel": 16}
    plan = planned("llama8b.toml", LLAMA_8B, tmp_path, gpus=19, gpu_gib=79, settings=settings)
    trainer = plan.stage("ppo").processes[0]
    assert trainer.problem == "ranks.tensor_parallel = 16 does not divide the 8 key-value heads"


ONE_B = {"model.path": "Llama-3.2-1B"}


@pytest.mark.parametrize(
    ("row", "name", "models", "gpus", "gpu_gib", "settings"),
    [
        ("| 1 B | adapters", "llama8b.toml", ONE_B, 4, 23, {"ranks.per_node": 1, "ppo.lora.rank": 16}),
        ("| 1 B | all", "llama8b.toml", ONE_B, 4, 79, {"ranks.per_node": 1}),
        ("| 8 B | all", "llama8b.toml", LLAMA_8B, 8, 79, {}),
        ("| 70 B | adapters", "llama70b.toml", LLAMA_70B, 8, 79, {}),
    ],
)
def test_gpu_sizes_of_the_kubernetes_page(row, name, models, gpus, gpu_gib, settings, tmp_path):
    page = (CONFIGS.parent / "docs" / "kubernetes.md").read_text()
    (line,) = [one for one in page.splitlines() if one.startswith(row)]
    cells = dict(zip(("trainer", "policy", "reward", "reference"), line.split("|")[3:7], strict=True))
    plan = planned(name, models, tmp_path, gpus=gpus, gpu_gib=gpu_gib, settings=settings)
    assert obstacle(plan) == ""
    sizes = {one.name: one.gpu_bytes / (1 << 30) for one in plan.stage("ppo").processes if one.gpu_bytes}
    assert {key: cells[key].split("×")[1].split()[0] for key in sizes} == {
        key: f"{size:.1f}" for key, size in sizes.items()
    }
