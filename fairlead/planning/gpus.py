"""Which GPUs of one machine each process of a run uses.

The trainer has one GPU for each rank. Replicas of the model services share the GPUs that are left, in turn;
if none is left, those of the trainer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fairlead.config import RunConfig
from fairlead.config.serving import ModelServiceSection, PolicySection, ReferenceSection, RewardSection
from fairlead.errors import ConfigError
from fairlead.planning.vllm_memory import parallel_sizes

TRAINER = "trainer"
"""Name of the trainer among the processes."""


def engine_gpus(section: ModelServiceSection) -> int:
    """Return the number of GPUs among which a replica of a model service divides its model; 0 if the trainer
    or no single model is its reward.

    Raises:
        ConfigError: if vLLM's options do not say so in numbers.
    """
    if isinstance(section, ReferenceSection) and section.engine == "trainer":
        return 0
    if isinstance(section, RewardSection) and not section.is_model:
        return 0
    if isinstance(section, RewardSection | ReferenceSection):
        pipeline = section.vllm.get("pipeline_parallel_size", 1) if section.engine == "vllm" else 1
        return section.tensor_parallel * (pipeline if isinstance(pipeline, int) else 1)
    if isinstance(section, PolicySection) and section.engine == "vllm":
        return math.prod(parallel_sizes(section))
    return 1


def assign(gpus: Sequence[str], *, ranks: int, services: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Return the GPUs of the trainer and of each service.

    Args:
        gpus: at least as many as ranks.
        ranks: GPUs that the trainer needs; 0 if it trains on the CPU.
        services: GPUs that each process of a service needs, by its name.
    """
    left = gpus[ranks:] or gpus
    placed: dict[str, tuple[str, ...]] = {TRAINER: tuple(gpus[:ranks])} if ranks else {}
    used = 0
    for name, number in services.items():
        # A divided model needs as many as it has parts, even if some are the trainer's.
        pool = left if number <= len(left) else gpus
        placed[name] = tuple(pool[(used + index) % len(pool)] for index in range(min(number, len(pool))))
        used += number
    return placed


def visible_devices(
    config: RunConfig, replicas: Sequence[tuple[str, str]], gpus: Sequence[str]
) -> Mapping[str, str]:
    """Return the value of `CUDA_VISIBLE_DEVICES` by process; the others see what the caller sees.

    With fewer than two GPUs there is nothing to assign.

    Args:
        config: the run; `local.gpus` overrides the plan for single processes.
        replicas: section and name of each process of a model service on this machine.
        gpus: the GPUs of the machine, as `CUDA_VISIBLE_DEVICES` names them.

    Raises:
        ConfigError: if there are fewer GPUs than ranks, or if `local.gpus` names an unknown process.
    """
    known = [TRAINER, *(name for _, name in replicas)]
    for name in config.local.gpus:
        if name not in known:
            raise ConfigError("local.gpus", got=name, allowed=f"the processes {', '.join(known)}")
    placed: dict[str, tuple[str, ...]] = {}
    if len(gpus) > 1:
        ranks = config.ranks.per_node if config.ppo.device != "cpu" else 0
        if ranks > len(gpus):
            raise ConfigError(
                "ranks.per_node",
                got=ranks,
                allowed=f"at most the number of GPUs, {len(gpus)}, or ppo.device = 'cpu'",
            )
        services = {
            name: number
            for section, name in replicas
            if getattr(config, section).device != "cpu" and (number := engine_gpus(getattr(config, section)))
        }
        placed = assign(gpus, ranks=ranks, services=services)
    return {name: ",".join(found) for name, found in placed.items()} | dict(config.local.gpus)
