"""What a run will take, held against what the machine has: every stage, the disk, and warnings in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fairlead.config import RunConfig
from fairlead.data.records import load_prompts
from fairlead.errors import ConfigError, DataError, ModelLoadError
from fairlead.planning.formulas import adapter_parameters
from fairlead.planning.machine import Machine, free_disk_bytes, this_machine
from fairlead.planning.model_size import ModelSize, model_size, scratch_size
from fairlead.planning.process import Lengths, MemoryPlanner, ProcessMemory, head_bytes

_BYTES_PER_TOKEN = 3
"""Of UTF-8, for the length of prompts before anything is tokenized; real tokenizers come to 3.5 to 5."""
_UNKNOWN_PROMPT_TOKENS = 256


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: the processes that run at the same time."""

    stage: str
    """sft, reward-model or ppo."""
    processes: tuple[ProcessMemory, ...]
    """Each kind once."""

    def on(self, device: str) -> int:
        """Bytes on `cpu` or `cuda` at the peak."""
        return sum(process.on(device) for process in self.processes)


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """Room on the disk at the end of a run, in bytes."""

    checkpoints: int
    """Of PPO, with the one that is being written."""
    weight_store: int
    """Versions kept, with the one that is being written."""
    models: int
    """Fine-tuned model, reward model, policy, best policy."""
    free: int
    """What is free where the run's folder is."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.checkpoints + self.weight_store + self.models


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What `fairlead plan` says."""

    stages: tuple[StagePlan, ...]
    """In their order."""
    disk: DiskPlan
    """Of the whole run."""
    machine: Machine
    """What there is."""
    notes: tuple[str, ...]
    """What was assumed."""

    def stage(self, name: str) -> StagePlan:
        """One of them."""
        return next(stage for stage in self.stages if stage.stage == name)

    def warnings(self, stage: str | None = None) -> tuple[str, ...]:
        """What does not fit, of one stage or of all; the disk is every stage's matter."""
        found = []
        has = {"cpu": self.machine.host_bytes, "cuda": self.machine.gpu_bytes}
        for each in self.stages:
            if stage not in (None, each.stage):
                continue
            for device, place in (("cpu", "main memory"), ("cuda", "GPU memory")):
                if each.on(device) > has[device]:
                    largest = max(each.processes, key=lambda process: process.on(device))
                    found.append(
                        f"{each.stage} needs about {in_words(each.on(device))} of {place}, most of it "
                        f"{largest.name} ({in_words(largest.on(device))}); there are {in_words(has[device])}"
                    )
        if self.disk.total > self.disk.free:
            found.append(
                f"the run needs about {in_words(self.disk.total)} of disk, and "
                f"{in_words(self.disk.free)} are free"
            )
        return tuple(found)


def plan_run(
    config: RunConfig,
    *,
    machine: Machine | None = None,
    prompt_tokens: int | None = None,
    read_data: bool = True,
) -> RunPlan:
    """Memory and disk of a run.

    Args:
        config: the run. A model that an earlier stage has not left yet counts as what that stage starts from.
        machine: to plan for another one than this.
        prompt_tokens: of the longest prompt; without it, by the length of the prompts in the run's data.
        read_data: whether that data is read; else a usual length is assumed.

    Raises:
        ModelLoadError: if a model's size cannot be told.
    """
    machine = machine or this_machine()
    notes: list[str] = []
    sizes = _sizes(config, notes)
    lengths = Lengths(
        prompt=min(
            prompt_tokens or (_prompt_tokens(config, notes) if read_data else _UNKNOWN_PROMPT_TOKENS),
            sizes["policy"].max_positions,
        ),
        answer=config.sampling.max_new_tokens,
    )
    planner = MemoryPlanner(config, sizes, lengths, has_gpu=machine.has_gpu)
    stages = (
        StagePlan("sft", tuple(planner.sft())),
        StagePlan("reward-model", tuple(planner.reward_model())),
        StagePlan("ppo", tuple(planner.ppo())),
    )
    return RunPlan(stages, _disk(config, sizes), machine, tuple(notes))


def in_words(size: float) -> str:
    """Bytes as 512 B, 3.2 MiB or 16 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB" if size < 1000 else f"{size:,.0f} TiB"


def _sizes(config: RunConfig, notes: list[str]) -> dict[str, ModelSize]:
    base = model_size(config.model.path) if config.model.path else scratch_size(config.model.scratch)
    sft = model_size(str(config.folder.sft_model)) if config.folder.sft_model.is_dir() else base
    policy = model_size(config.policy.path) if config.policy.path else sft
    reward_base = model_size(config.reward_model.path) if config.reward_model.path else sft
    reward = model_size(config.reward.path) if config.reward.path else _trained_reward(config) or reward_base
    reference = model_size(config.reference.path) if config.reference.path else sft
    sizes = {
        "base": base,
        "policy": policy,
        "reward_base": reward_base,
        "reward": reward,
        "reference": reference,
    }
    if any(size is base and not config.model.path for size in sizes.values()):
        notes.append("a model from scratch counts with the largest vocabulary that it may get")
    for name in sorted({size.name for size in sizes.values() if not size.exact and size.tensors == 0}):
        notes.append(f"{name}: counted by the size of its files, as they are no safetensors")
    return sizes


def _trained_reward(config: RunConfig) -> ModelSize | None:
    folder = config.folder.reward_model
    members = sorted(path.parent for path in folder.glob("*/config.json"))
    for path in (folder, *members):
        if (path / "config.json").is_file():
            try:
                return model_size(str(path))
            except ModelLoadError:
                continue
    return None


def _prompt_tokens(config: RunConfig, notes: list[str]) -> int:
    try:
        prompts = load_prompts(config).train
    except (ConfigError, DataError) as error:
        notes.append(f"prompts of {_UNKNOWN_PROMPT_TOKENS} tokens are assumed: {error}")
        return _UNKNOWN_PROMPT_TOKENS
    longest = max(len(str(prompt).encode()) for prompt in prompts)
    tokens = math.ceil(longest / _BYTES_PER_TOKEN) + 1
    notes.append(
        f"the longest prompt counts as {tokens} tokens (of {longest} bytes); --prompt-tokens says better"
    )
    return tokens


def _disk(config: RunConfig, sizes: dict[str, ModelSize]) -> DiskPlan:
    """Checkpoints hold weights and Adam's moments of what learns, versions the policy's weights; float32."""
    policy, lora = sizes["policy"], config.ppo.lora
    critic = sizes["reward"] if config.ppo.critic_init == "reward_model" else policy
    if lora.rank:
        learning = adapter_parameters(policy, lora) + adapter_parameters(critic, lora)
        published = adapter_parameters(policy, lora)
    else:
        learning, published = policy.parameters + critic.body, policy.parameters
    kept = config.checkpoint.keep + 1 + (1 if config.evaluation.every_updates else 0)
    versions = max(config.weights.keep, config.ppo.max_staleness + 1) + 1
    policies = 2 if config.evaluation.every_updates else 1
    reward = sizes["reward_base"].body * config.reward_model.ensemble_size
    return DiskPlan(
        checkpoints=kept * 3 * (learning * 4 + head_bytes(critic)),
        weight_store=versions * published * 4,
        models=4 * (sizes["base"].parameters + reward + policies * policy.parameters),
        free=free_disk_bytes(config.folder.root),
    )
