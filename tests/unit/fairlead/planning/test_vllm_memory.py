"""vLLM in `fairlead plan`: a fixed share of each GPU, of which its cache is what weights leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.config import RunConfig
from fairlead.errors import ConfigError
from fairlead.planning import vllm_memory
from fairlead.planning.machine import Machine
from fairlead.planning.plan import RunPlan, plan_run
from fairlead.planning.process_memory import RUNTIME_BYTES, ProcessMemory
from services.policy.vllm import options as engine_options
from tests import model_shapes

GIB = 1 << 30
GPUS = Machine(host_bytes=2 << 40, gpu_bytes=80 * GIB, num_gpus=8)


def planned(folder: Path, shape: str, *, machine: Machine = GPUS, lora: int = 0, **policy: object) -> RunPlan:
    path = folder / shape
    model = {"path": str(path if path.is_dir() else model_shapes.write(path, shape))}
    policy = {"engine": "vllm", "dtype": "bfloat16", "max_sequence_tokens": 4_096} | model | policy
    config = RunConfig(runs=folder, model=model, policy=policy, ppo={"lora": {"rank": lora}})  # type: ignore[arg-type]
    return plan_run(config, machine=machine, prompt_tokens=1_024)


def policy_of(plan: RunPlan) -> ProcessMemory:
    return next(process for process in plan.stage("ppo").processes if process.name == "policy")


@pytest.mark.parametrize(("shape", "gpus"), [("Llama-3.1-8B", 1), ("Llama-3.1-8B", 2), ("Llama-3.1-70B", 4)])
def test_cache_is_what_weights_leave_of_the_share_of_each_gpu(shape: str, gpus: int, tmp_path: Path):
    options = {"gpu_memory_utilization": 0.85, "tensor_parallel_size": gpus}
    plan = planned(tmp_path, shape, vllm=options)
    policy = policy_of(plan)
    parameters, layers = {"Llama-3.1-8B": (8_030_261_248, 32), "Llama-3.1-70B": (70_553_706_496, 80)}[shape]
    assert policy.model_bytes == int(0.85 * 80 * GIB)
    assert policy.gpu_bytes == policy.model_bytes + RUNTIME_BYTES["cuda"]
    assert (policy.gpus, policy.weights, policy.problem) == (gpus, -(-parameters * 2 // gpus), "")
    # Keys and values of 8 heads of 128, in two bytes, shared among the GPUs.
    tokens = policy.cache // (layers * 2 * 8 * 128 * 2 // gpus)
    assert plan.notes[-1] == (
        f"the cache of vLLM holds {tokens:,} tokens: {tokens // 1_088:,} sequences of the longest prompt and "
        "answer (1,088 tokens) at a time; policy.max_slots is 32"
    )


def test_every_gpu_holds_at_least_one_head_of_keys(tmp_path: Path):
    eight, sixteen = (
        planned(tmp_path, "Llama-3.1-8B", vllm={"tensor_parallel_size": gpus}).notes[-1] for gpus in (8, 16)
    )
    first, second = (int(note.split()[5].replace(",", "")) for note in (eight, sixteen))
    # Twice as many GPUs hold hardly more tokens, only because weights take less of each.
    assert 1 < second / first < 1.05


def test_options_of_the_cache_and_adapters_are_counted(tmp_path: Path):
    plain, narrow, fixed, adapters = (
        policy_of(planned(tmp_path, "Llama-3.1-8B", **sections))
        for sections in (
            {},
            {"vllm": {"kv_cache_dtype": "fp8"}},
            {"vllm": {"kv_cache_memory_bytes": 5 * GIB}},
            {"lora": 20},
        )
    )
    assert plain.model_bytes == int(vllm_memory.UTILISATION * 80 * GIB)
    assert (narrow.cache, fixed.cache) == (plain.cache, 5 * GIB)
    # Two adapters of rank 32, the next that vLLM has, in two bytes: queries and output, keys and values, and
    # three feed-forward layers, in each of 32 blocks.
    widths = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14_336)
    assert adapters.weights - plain.weights == 2 * 2 * 32 * 32 * widths


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (
            {"vllm": {"tensor_parallel_size": 1}},
            "weights of 131 GiB and a forward pass of 2.06 GiB leave no memory for its cache: raise "
            "policy.vllm.tensor_parallel_size",
        ),
        (
            {"vllm": {"tensor_parallel_size": 2}, "max_sequence_tokens": 0},
            "policy.max_sequence_tokens, or raise policy.vllm.tensor_parallel_size",
        ),
        (
            {"vllm": {"tensor_parallel_size": 3}},
            "policy.vllm.tensor_parallel_size = 3 does not divide the 64 attention heads",
        ),
    ],
    ids=["weights", "a sequence", "heads"],
)
def test_policy_that_would_not_start_is_refused(policy: dict[str, object], problem: str, tmp_path: Path):
    plan = planned(tmp_path, "Llama-3.1-70B", **policy)
    assert policy_of(plan).problem.endswith(problem)
    assert plan.warnings("ppo")[0] == f"policy: {policy_of(plan).problem}"


def test_share_of_a_cpu_is_of_main_memory(tmp_path: Path):
    machine = Machine(host_bytes=64 * GIB, gpu_bytes=0)
    share, fixed = (
        policy_of(planned(tmp_path, "Qwen2.5-0.5B", machine=machine, vllm=options))
        for options in ({"gpu_memory_utilization": 0.5}, {"kv_cache_memory_bytes": 4 * GIB})
    )
    assert (share.device, share.model_bytes, fixed.cache) == ("cpu", 32 * GIB, 4 * GIB)
    assert share.on("cpu") == share.model_bytes + share.runtime


@pytest.mark.parametrize(
    "options",
    [{"gpu_memory_utilization": "90%"}, {"tensor_parallel_size": 0}, {"kv_cache_memory_bytes": 1.5}],
)
def test_option_that_is_no_number_is_refused(options: dict[str, object], tmp_path: Path):
    (name,) = options
    with pytest.raises(ConfigError, match=f"policy.vllm.{name}: got "):
        planned(tmp_path, "Qwen2.5-0.5B", vllm=options)


def test_copied_constants_match_the_engine():
    assert engine_options._PROBE_REQUESTS == vllm_memory.PROBE_REQUESTS
    assert engine_options._LORA_RANKS == vllm_memory.LORA_RANKS
