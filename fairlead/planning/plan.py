"""The memory and disk space that a run needs, compared with what the machine has, with warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.config import RunConfig
from fairlead.config.training import LoraSection
from fairlead.data.records import load_prompts
from fairlead.errors import ConfigError, DataError, ModelLoadError
from fairlead.planning.formulas import DTYPE_BYTES, adapter_parameters, in_words
from fairlead.planning.gpus import TRAINER, assign
from fairlead.planning.machine import Machine, free_disk_bytes, this_machine
from fairlead.planning.model_size import ModelSize, critic_size, model_size, scratch_size
from fairlead.planning.process import MemoryPlanner, head_bytes
from fairlead.planning.process_memory import Lengths, ProcessMemory
from fairlead.planning.vllm_memory import VllmMemory

_BYTES_PER_TOKEN = 3
"""Bytes of UTF-8 per token, to estimate the length of prompts without a tokenizer; real tokenizers have 3.5
to 5."""
_UNKNOWN_PROMPT_TOKENS = 256
STAGES = ("sft", "reward-model", "preference", "ppo")
"""The stages that can be planned, in their order."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: the processes that run at the same time."""

    stage: str
    """`sft`, `reward-model`, `preference` or `ppo`."""
    processes: tuple[ProcessMemory, ...]
    """Each kind of process once."""
    pinned: Mapping[str, str] = field(default_factory=dict)
    """GPUs of single processes, as in `local.gpus`."""

    def on(self, device: str) -> int:
        """Return the peak memory on `cpu` or `cuda`, in bytes."""
        return sum(process.on(device) for process in self.processes)

    def gpu_processes(self, number: int) -> list[dict[str, ProcessMemory]]:
        """Return the processes on each GPU of one machine, by name, as `gpus.visible_devices` places them.

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
        placed = assign(gpus, ranks=ranks, services=services)
        placed |= {
            name: tuple(gpu.strip() for gpu in named.split(",") if gpu.strip())
            for name, named in self.pinned.items()
            if name in owner and number > 1
        }
        found: dict[str, dict[str, ProcessMemory]] = {gpu: {} for gpu in gpus}
        for name, using_gpus in placed.items():
            for gpu in using_gpus:
                process = owner[name]
                found.setdefault(gpu, {})[process.name if process.is_trainer else name] = process
        return list(found.values())

    def on_gpus(self, number: int) -> list[int]:
        """Return the peak memory of each GPU of one machine, in bytes; see `gpu_processes`."""
        return [sum(process.gpu_bytes for process in one.values()) for one in self.gpu_processes(number)]


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """Disk space at the end of a run, in bytes."""

    checkpoints: int
    """Checkpoints of PPO, including the one that is being written."""
    weight_store: int
    """Weight versions that are kept, and the one that is being written."""
    models: int
    """Fine-tuned model, reward model, policy and best policy, and the policy of the preference stage if the
    run has one."""
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
    """The assumptions of the plan, and settings without effect."""
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

    def loads(self, stage: StagePlan) -> list[dict[str, ProcessMemory]]:
        """Return the processes that share a GPU, by name, for each GPU; in a cluster none do."""
        if self.nodes == 1:
            return stage.gpu_processes(self.machine.num_gpus)
        return [{process.name: process} for process in stage.processes if process.device == "cuda"]

    def _shortages(self, stage: StagePlan) -> list[str]:
        found = [f"{process.name}: {process.problem}" for process in stage.processes if process.problem]
        # In a cluster every pod has memory of its own.
        pods = [process.pod_bytes for process in stage.processes]
        needed = stage.on("cpu") if self.nodes == 1 else max(pods)
        if needed > self.machine.host_bytes:
            largest = max(stage.processes, key=lambda process: process.pod_bytes)
            found.append(
                f"{stage.stage} needs about {in_words(needed)} of main memory, most of it "
                f"{largest.name} ({in_words(largest.on('cpu'))}), but only "
                f"{in_words(self.machine.host_bytes)} are available"
            )
        found += self._full_gpus(stage)
        for process in stage.processes:
            number = process.replicas if process.is_trainer else process.gpus
            if self.machine.has_gpu and process.device == "cuda" and number > self.machine.num_gpus:
                what = (
                    f"{stage.stage} has {number} ranks on each machine (ranks.per_node)"
                    if process.is_trainer
                    else f"{process.name} divides its model among {number} GPUs"
                )
                found.append(f"{what}, but a machine has {self.machine.num_gpus}")
        return found

    def _full_gpus(self, stage: StagePlan) -> list[str]:
        """Return a warning for the fullest GPU, if it is too small."""
        loads = self.loads(stage)
        worst = max(loads, key=lambda one: sum(process.gpu_bytes for process in one.values()), default={})
        needed = sum(process.gpu_bytes for process in worst.values())
        if needed <= self.machine.gpu_bytes:
            return []
        parts = ", ".join(f"{name} {in_words(process.gpu_bytes)}" for name, process in worst.items())
        where = "GPU memory" if self.machine.num_gpus == 1 else "memory of one GPU"
        return [
            f"{stage.stage} needs about {in_words(needed)} of {where} ({parts}), but only "
            f"{in_words(self.machine.gpu_bytes)} are available"
        ]


def plan_run(
    config: RunConfig,
    *,
    machine: Machine | None = None,
    prompt_tokens: int | None = None,
    read_data: bool = True,
    sizes: Mapping[str, ModelSize] | None = None,
    stage: str | None = None,
) -> RunPlan:
    """Return the memory and disk space that a run needs.

    Args:
        config: the run. A model that an earlier stage has not saved yet is assumed to have the size of the
            model that the stage starts from.
        machine: the machine to plan for; None is this one.
        prompt_tokens: tokens of the longest prompt; None estimates it from the prompts in the run's data.
        read_data: whether to read that data; without it a default length is assumed.
        sizes: what `model_sizes` returned for the same models; None reads them.
        stage: the only stage to plan; None for SFT, reward model and PPO, and the preference stage if the run
            has settings of it.

    Raises:
        ModelLoadError: if the size of a model cannot be determined.
        ConfigError: if an option of vLLM that decides its memory is not a number, or there is no such stage.
    """
    if stage not in (None, *STAGES):
        raise ConfigError("stage", got=stage, allowed=f"one of {', '.join(STAGES)}")
    machine = machine or this_machine()
    notes: list[str] = []
    sizes = sizes or model_sizes(config, notes)
    lengths = Lengths(
        prompt=min(
            prompt_tokens or (prompt_tokens_of(config, notes) if read_data else _UNKNOWN_PROMPT_TOKENS),
            sizes["policy"].max_positions,
        ),
        answer=config.sampling.max_new_tokens,
    )
    planner = MemoryPlanner(config, sizes, lengths, machine)
    stages = [
        StagePlan("sft", tuple(planner.sft())),
        StagePlan("reward-model", tuple(planner.reward_model())),
        StagePlan("preference", tuple(planner.preference())),
        StagePlan("ppo", tuple(planner.ppo()), config.local.gpus),
    ]
    left_out = set() if config.has_preference_stage else {"preference"}
    stages = [one for one in stages if (one.stage == stage if stage else one.stage not in left_out)]
    if stage not in (None, "ppo"):
        return RunPlan(tuple(stages), _disk(config, sizes), machine, tuple(notes), config.ranks.nodes)
    if "policy" in (engines := planner.vllm()):
        notes.append(_cache_note(config, engines["policy"], lengths))
    if config.ranks.nodes > 1 and any(process.device == "cuda" for process in stages[-1].processes):
        notes.append(_gpus_note(stages[-1], config.ranks.nodes))
    return RunPlan(tuple(stages), _disk(config, sizes), machine, tuple(notes), config.ranks.nodes)


def _cache_note(config: RunConfig, found: VllmMemory, lengths: Lengths) -> str:
    return (
        f"the cache of vLLM holds {found.cached_tokens:,} tokens: "
        f"{found.cached_tokens // lengths.sequence:,} "
        f"sequences of the longest prompt and answer ({lengths.sequence:,} tokens) at a time; "
        f"policy.max_slots is {config.policy.max_slots:,}"
    )


def _gpus_note(stage: StagePlan, nodes: int) -> str:
    """Return how many GPUs a run in a cluster uses."""
    numbers = {
        process.name: (process.replicas * nodes if process.is_trainer else process.replicas * process.gpus)
        for process in stage.processes
        if process.device == "cuda"
    }
    parts = ", ".join(f"{name} {number}" for name, number in numbers.items())
    return f"GPUs in all: {sum(numbers.values())} ({parts})"


def model_sizes(config: RunConfig, notes: list[str]) -> dict[str, ModelSize]:
    """Return the sizes of the models of a run, by their part in it; an assumption is added to `notes`.

    Raises:
        ModelLoadError: if the size of a model cannot be determined.
    """
    base = _named_size("model.path", config.model.path) or scratch_size(config.model.scratch)
    sft = model_size(str(config.folder.sft_model)) if config.folder.sft_model.is_dir() else base
    policy = _named_size("policy.path", config.policy.path) or sft
    reward_base = _named_size("reward_model.path", config.reward_model.path) or sft
    reward = _named_size("reward.path", config.reward.path) or _trained_reward(config) or reward_base
    reference = _named_size("reference.path", config.reference.path) or sft
    sizes = {
        "base": base,
        "policy": policy,
        "reward_base": reward_base,
        "preference": _named_size("preference.path", config.preference.path) or sft,
        "reward": reward,
        "reference": reference,
    }
    if config.evaluation.every_updates and config.evaluation.reward_model:
        sizes["heldout_reward"] = model_size(config.evaluation.reward_model)
    if any(size is base and not config.model.path for size in sizes.values()):
        notes.append("a model from scratch is counted with the largest vocabulary that it may have")
    return sizes


def _named_size(key: str, path: str) -> ModelSize | None:
    """Return the size of the model that a key names; None if it names none. Errors say which key it is."""
    try:
        return model_size(path) if path else None
    except ModelLoadError as error:
        raise ModelLoadError(f"{key}: {error}") from error


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


def _disk(config: RunConfig, sizes: Mapping[str, ModelSize]) -> DiskPlan:
    """Checkpoints contain weights and Adam's moments of what is trained, versions the policy's weights;
    float32 or in `weights.dtype`.
    """
    policy = sizes["policy"]
    lora = config.ppo.lora
    critic = critic_size(config.ppo, sizes)
    if lora.rank:
        trained, of_critic = adapter_parameters(policy, lora), adapter_parameters(critic, lora)
        published = adapter_parameters(policy, lora)
    else:
        trained, of_critic = policy.parameters, critic.body
        published = policy.parameters
    trained_bytes = trained * 4 + (of_critic * 4 + head_bytes(critic) if config.ppo.has_critic else 0)
    averaged = trained * 4 if config.ppo.ema_decay else 0
    kept = config.checkpoint.keep + 1 + (1 if config.evaluation.every_updates else 0)
    # Adapters are always float32.
    bytes_each = 4 if lora.rank else DTYPE_BYTES[config.weights.dtype]
    versions = max(config.weights.keep, config.ppo.max_staleness + 1) + 1
    start = sizes["reward_base"]
    saved: tuple[int, ...] = (
        _adapter(sizes["base"], config.sft.lora) or sizes["base"].parameters,
        (_adapter(start, config.reward_model.lora) or start.body) * config.reward_model.ensemble_size,
        (_adapter(policy, lora) or policy.parameters)
        * (1 + bool(config.evaluation.every_updates) + bool(config.ppo.ema_decay)),
    )
    if config.has_preference_stage:
        tuned = sizes["preference"]
        saved = (*saved, _adapter(tuned, config.preference.lora) or tuned.parameters)
    return DiskPlan(
        checkpoints=kept * (3 * trained_bytes + averaged),
        weight_store=versions * published * bytes_each,
        models=4 * sum(saved),
        free=free_disk_bytes(config.folder.root),
    )


def _adapter(size: ModelSize, lora: LoraSection) -> int:
    """Return the parameters of a model that is saved as an adapter; 0 if it is saved whole."""
    return 0 if lora.merge else adapter_parameters(size, lora)
