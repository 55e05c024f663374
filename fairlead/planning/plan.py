"""The memory and disk space that a run needs, compared with what the machine has, with warnings."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fairlead.config import RunConfig
from fairlead.config.training import LoraSection
from fairlead.data.records import load_prompts
from fairlead.errors import ConfigError, DataError, ModelLoadError
from fairlead.planning.formulas import adapter_parameters
from fairlead.planning.gpus import TRAINER, assign
from fairlead.planning.machine import Machine, free_disk_bytes, this_machine
from fairlead.planning.model_size import ModelSize, model_size, scratch_size
from fairlead.planning.process import Lengths, MemoryPlanner, ProcessMemory, head_bytes

_BYTES_PER_TOKEN = 3
"""Bytes of UTF-8 per token, to estimate the length of prompts without a tokenizer; real tokenizers have 3.5
to 5."""
_UNKNOWN_PROMPT_TOKENS = 256


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: the processes that run at the same time."""

    stage: str
    """`sft`, `reward-model` or `ppo`."""
    processes: tuple[ProcessMemory, ...]
    """Each kind of process once."""

    def on(self, device: str) -> int:
        """Return the peak memory on `cpu` or `cuda`, in bytes."""
        return sum(process.on(device) for process in self.processes)

    def on_gpus(self, number: int) -> list[int]:
        """Return the peak memory of each GPU of one machine, in bytes, as `gpus.assign` assigns them.

        Args:
            number: GPUs of the machine; if the trainer has more ranks, they are counted with more GPUs.
        """
        using = [process for process in self.processes if process.device == "cuda"]
        ranks = sum(process.replicas for process in using if process.is_trainer)
        owner = {
            TRAINER if process.is_trainer else f"{process.name}-{replica}": process
            for process in using
            for replica in range(process.replicas)
        }
        services = {name: process.gpus for name, process in owner.items() if name != TRAINER}
        gpus = [str(index) for index in range(max(number, ranks, *services.values(), 1))]
        loads = dict.fromkeys(gpus, 0)
        for name, placed in assign(gpus, ranks=ranks, services=services).items():
            for gpu in placed:
                loads[gpu] += owner[name].gpu_bytes
        return list(loads.values())


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """Disk space at the end of a run, in bytes."""

    checkpoints: int
    """Checkpoints of PPO, including the one that is being written."""
    weight_store: int
    """Weight versions that are kept, and the one that is being written."""
    models: int
    """Fine-tuned model, reward model, policy and best policy."""
    free: int
    """Free space at the run's folder."""

    @property
    def total(self) -> int:
        """The space that the run needs in total."""
        return self.checkpoints + self.weight_store + self.models


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The resources that a run needs, as `fairlead plan` shows them."""

    stages: tuple[StagePlan, ...]
    """The stages, in order."""
    disk: DiskPlan
    """Disk space of the whole run."""
    machine: Machine
    """The machine that the plan is for."""
    notes: tuple[str, ...]
    """The assumptions of the plan."""
    nodes: int = 1
    """Machines or pods of the trainer; with several, every process has GPUs of its own."""

    def stage(self, name: str) -> StagePlan:
        """Return the plan of one stage."""
        return next(stage for stage in self.stages if stage.stage == name)

    def warnings(self, stage: str | None = None) -> tuple[str, ...]:
        """Return a warning for everything that does not fit, for one stage or all. Disk space concerns every
        stage.
        """
        found = []
        for each in self.stages:
            if stage in (None, each.stage):
                found += self._shortages(each)
        if self.disk.total > self.disk.free:
            found.append(
                f"the run needs about {in_words(self.disk.total)} of disk space, but only "
                f"{in_words(self.disk.free)} are free"
            )
        return tuple(found)

    def _shortages(self, stage: StagePlan) -> list[str]:
        found = []
        if self.nodes == 1:
            needs = {"main memory": ("cpu", stage.on("cpu"), self.machine.host_bytes)}
            worst = max(stage.on_gpus(self.machine.num_gpus), default=0)
        else:
            # Every pod is on a machine of its own size: only the largest process can be compared.
            needs = {}
            worst = max((process.gpu_bytes for process in stage.processes), default=0)
        where = "GPU memory" if self.machine.num_gpus == 1 else "memory of one GPU"
        needs[where] = ("cuda", worst, self.machine.gpu_bytes)
        for place, (device, needed, available) in needs.items():
            if needed > available:
                largest = max(stage.processes, key=lambda process: process.on(device) // process.replicas)
                found.append(
                    f"{stage.stage} needs about {in_words(needed)} of {place}, most of it {largest.name} "
                    f"({in_words(largest.on(device))}), but only {in_words(available)} are available"
                )
        ranks = sum(process.replicas for process in stage.processes if process.is_trainer)
        if self.machine.has_gpu and ranks > self.machine.num_gpus:
            found.append(
                f"{stage.stage} has {ranks} ranks on each machine (ranks.per_node), which has "
                f"{self.machine.num_gpus} GPUs"
            )
        return found


def plan_run(
    config: RunConfig,
    *,
    machine: Machine | None = None,
    prompt_tokens: int | None = None,
    read_data: bool = True,
) -> RunPlan:
    """Return the memory and disk space that a run needs.

    Args:
        config: the run. A model that an earlier stage has not saved yet is assumed to have the size of the
            model that the stage starts from.
        machine: the machine to plan for; None is this one.
        prompt_tokens: tokens of the longest prompt; None estimates it from the prompts in the run's data.
        read_data: whether to read that data; without it a default length is assumed.

    Raises:
        ModelLoadError: if the size of a model cannot be determined.
    """
    machine = machine or this_machine()
    notes: list[str] = []
    sizes = _sizes(config, notes)
    lengths = Lengths(
        prompt=min(
            prompt_tokens or (prompt_tokens_of(config, notes) if read_data else _UNKNOWN_PROMPT_TOKENS),
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
    return RunPlan(stages, _disk(config, sizes), machine, tuple(notes), config.ranks.nodes)


def in_words(size: float) -> str:
    """Return a number of bytes as text, such as 512 B, 3.2 MiB or 16 GiB."""
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
        notes.append("a model from scratch is counted with the largest vocabulary that it may have")
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


def prompt_tokens_of(config: RunConfig, notes: list[str]) -> int:
    """Return an estimate of the tokens of the longest prompt of a run; its assumption is added to `notes`."""
    try:
        prompts = load_prompts(config).train
    except (ConfigError, DataError) as error:
        notes.append(f"assuming prompts of {_UNKNOWN_PROMPT_TOKENS} tokens: {error}")
        return _UNKNOWN_PROMPT_TOKENS
    longest = max(len(str(prompt).encode()) for prompt in prompts)
    tokens = math.ceil(longest / _BYTES_PER_TOKEN) + 1
    notes.append(
        f"assuming {tokens} tokens for the longest prompt ({longest} bytes); --prompt-tokens overrides it"
    )
    return tokens


def _disk(config: RunConfig, sizes: dict[str, ModelSize]) -> DiskPlan:
    """Checkpoints contain weights and Adam's moments of what is trained, versions the policy's weights;
    float32.
    """
    policy = sizes["policy"]
    lora = config.ppo.lora
    critic = sizes["reward"] if config.ppo.critic_init == "reward_model" else policy
    if lora.rank:
        trained = adapter_parameters(policy, lora) + adapter_parameters(critic, lora)
        published = adapter_parameters(policy, lora)
    else:
        trained = policy.parameters + critic.body
        published = policy.parameters
    kept = config.checkpoint.keep + 1 + (1 if config.evaluation.every_updates else 0)
    versions = max(config.weights.keep, config.ppo.max_staleness + 1) + 1
    start = sizes["reward_base"]
    saved = (
        _adapter(sizes["base"], config.sft.lora) or sizes["base"].parameters,
        (_adapter(start, config.reward_model.lora) or start.body) * config.reward_model.ensemble_size,
        (_adapter(policy, lora) or policy.parameters) * (2 if config.evaluation.every_updates else 1),
    )
    return DiskPlan(
        checkpoints=kept * 3 * (trained * 4 + head_bytes(critic)),
        weight_store=versions * published * 4,
        models=4 * sum(saved),
        free=free_disk_bytes(config.folder.root),
    )


def _adapter(size: ModelSize, lora: LoraSection) -> int:
    """Return the parameters of a model that is saved as an adapter; 0 if it is saved whole."""
    return 0 if lora.merge else adapter_parameters(size, lora)
