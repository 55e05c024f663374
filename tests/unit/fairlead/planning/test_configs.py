"""The files in configs/ for real models, planned for the GPUs that they are written for, and for fewer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fairlead.config import load
from fairlead.planning.machine import Machine
from fairlead.planning.plan import RunPlan, plan_run
from fairlead.planning.proposal import obstacle
from tests import model_shapes

CONFIGS = Path(__file__).parents[4] / "configs"


def planned(
    name: str, models: Mapping[str, str], folder: Path, *, gpus: int, gpu_gib: int, **settings: object
) -> RunPlan:
    """Return the plan of a file, with models of the shapes of those that it names."""
    paths = {
        key: str(model_shapes.write(folder / key, shape, is_reward=key.startswith("reward.")))
        for key, shape in models.items()
    }
    flags = {key.replace("__", "."): value for key, value in settings.items()}
    config = load(CONFIGS / name, overrides={"runs": str(folder / "runs")} | paths | flags)
    machine = Machine(host_bytes=2 << 40, gpu_bytes=gpu_gib << 30, num_gpus=gpus)
    return plan_run(
        config,
        machine=machine,
        prompt_tokens=config.policy.max_sequence_tokens - config.sampling.max_new_tokens,
    )


LLAMA_8B = {"model.path": "Llama-3.1-8B"}


def test_llama8b_fits_on_the_gpus_that_it_is_written_for(tmp_path: Path):
    plan = planned("llama8b.toml", LLAMA_8B, tmp_path, gpus=8, gpu_gib=79)
    assert [warning for warning in plan.warnings() if "disk space" not in warning] == []
    assert obstacle(plan) == ""
    using = [list(names) for names in plan.loads(plan.stage("ppo"))]
    assert using == [["trainer"]] * 5 + [["policy-0"], ["reward-0"], ["reference-0"]]
    assert any("the cache of vLLM holds" in note for note in plan.notes)


def test_llama8b_does_not_fit_on_fewer_gpus(tmp_path: Path):
    plan = planned("llama8b.toml", LLAMA_8B, tmp_path, gpus=7, gpu_gib=79)
    (warning, _) = plan.warnings("ppo")
    assert warning.startswith("ppo needs about 95 GiB of memory of one GPU (policy-0 71.6 GiB, reference-0 ")
