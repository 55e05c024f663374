"""Which GPUs each process of a run on one machine uses, as a value of `CUDA_VISIBLE_DEVICES`.

The trainer has one GPU for each rank. Replicas of the model services share the GPUs that are left, in turn;
if none is left, those of the trainer. With fewer than two GPUs there is nothing to place.
"""

from __future__ import annotations

from collections.abc import Sequence

from fairlead.config import RunConfig
from fairlead.errors import ConfigError


def place_gpus(config: RunConfig, replicas: Sequence[tuple[str, str]], gpus: Sequence[str]) -> dict[str, str]:
    """Return the value of `CUDA_VISIBLE_DEVICES` by process; the others see what the caller sees.

    Args:
        config: the run; `local.gpus` overrides the plan for single processes.
        replicas: section and name of each process of a model service on this machine.
        gpus: the GPUs of the machine, as `CUDA_VISIBLE_DEVICES` names them.

    Raises:
        ConfigError: if there are fewer GPUs than ranks, or if `local.gpus` names an unknown process.
    """
    placed: dict[str, str] = {}
    if len(gpus) > 1:
        trainer: Sequence[str] = ()
        if config.ppo.device != "cpu":
            trainer = gpus[: config.ranks.per_node]
            if len(trainer) < config.ranks.per_node:
                raise ConfigError(
                    "ranks.per_node",
                    got=config.ranks.per_node,
                    allowed=f"at most the number of GPUs, {len(gpus)}, or ppo.device = 'cpu'",
                )
            placed["trainer"] = ",".join(trainer)
        left = gpus[len(trainer) :] or gpus
        on_gpus = [name for section, name in replicas if getattr(config, section).device != "cpu"]
        placed |= {name: left[number % len(left)] for number, name in enumerate(on_gpus)}
    known = ["trainer", *(name for _, name in replicas)]
    for name in config.local.gpus:
        if name not in known:
            raise ConfigError("local.gpus", got=name, allowed=f"the processes {', '.join(known)}")
    return placed | dict(config.local.gpus)
