"""Settings with which PPO fits on given GPUs: ranks, recomputed blocks, smaller batches, adapters.

Tries what costs least first and stops at the first plan that fits. Knows the sizes from `plan`; runs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

from fairlead.config import RunConfig
from fairlead.planning.formulas import in_words
from fairlead.planning.gpus import engine_gpus
from fairlead.planning.machine import Machine
from fairlead.planning.plan import RunPlan, plan_run, prompt_tokens_of
from fairlead.planning.process import ProcessMemory

ADAPTER_RANK = 16
"""Rank of the adapters that are proposed if training all weights does not fit."""
SPARE_SHARE = 0.9
"""Share of a GPU that a plan may fill: activations are estimates, and allocators leave gaps. It does not
apply to vLLM, which takes what it is given."""
_MODEL_SERVICES = ("policy", "reward", "reference")


@dataclass(frozen=True, slots=True)
class Proposal:
    """The settings that make a run fit, or what is in the way."""

    settings: Mapping[str, object]
    """Changes of the configuration, by dotted key."""
    plan: RunPlan
    """The plan with these settings; if nothing fits, that of the settings that need least."""
    obstacle: str = ""
    """Why nothing fits; empty if the plan fits."""


def propose(
    config: RunConfig, *, machine: Machine, nodes: int = 1, prompt_tokens: int | None = None
) -> Proposal:
    """Return the settings with which PPO fits.

    Args:
        config: the run. It keeps its models, its number of replicas, and settings not named above.
        machine: one machine or node; it has GPUs.
        nodes: number of them. With several, services have GPUs of their own, in pods of their own.
        prompt_tokens: tokens of the longest prompt; None reads the prompts.

    Raises:
        ModelLoadError: if the size of a model cannot be determined.
    """
    tokens = prompt_tokens or prompt_tokens_of(config, [])
    found: Proposal | None = None
    for settings in _candidates(config, machine.num_gpus, nodes):
        changed = config
        for key, value in settings.items():
            changed = _changed(changed, key.split("."), value)
        plan = plan_run(changed, machine=machine, prompt_tokens=tokens)
        found = Proposal(settings, plan, obstacle(plan))
        if not found.obstacle:
            return found
    assert found is not None
    return found


def _candidates(config: RunConfig, gpus: int, nodes: int) -> Iterator[dict[str, object]]:
    """Yield changes of the configuration: those that cost least first, those that need least last."""
    section = config.ppo
    adapters = sorted({section.lora.rank, section.lora.rank or ADAPTER_RANK})
    recompute = sorted({section.gradient_checkpointing, True})
    batches = [section.max_micro_batch_tokens]
    while batches[-1] > 2_048:
        batches.append(batches[-1] // 2)
    for rank, tokens, recomputed, per_node in itertools.product(
        adapters, batches, recompute, _ranks(config, gpus, nodes)
    ):
        settings: dict[str, object] = {
            "ranks.nodes": nodes,
            "ranks.per_node": per_node,
            "ppo.lora.rank": rank,
            "ppo.gradient_checkpointing": recomputed,
            "ppo.max_micro_batch_tokens": tokens,
            "ppo.dtype": "bfloat16",
            **{f"{name}.dtype": "bfloat16" for name in _MODEL_SERVICES},
        }
        yield {key: value for key, value in settings.items() if value != _value(config, key)}


def _ranks(config: RunConfig, gpus: int, nodes: int) -> list[int]:
    """Return numbers of ranks per node: a GPU for every service, then fewer, then shared ones."""
    sections = (config.policy, config.reward, config.reference)
    services = sum(section.replicas * engine_gpus(section) for section in sections)
    if nodes > 1:
        return [max(1, (nodes * gpus - services) // nodes)]
    first = max(1, gpus - services)
    return [*range(first, gpus + 1)]


def obstacle(plan: RunPlan) -> str:
    """Return why PPO does not fit on the GPUs of its plan, with some to spare; empty if it fits."""
    stage, machine = plan.stage("ppo"), plan.machine
    for process in stage.processes:
        if process.problem:
            return f"{process.name}: {process.problem}"
    worst = max(plan.loads(stage), key=lambda one: sum(map(_with_spare, one.values())))
    needed = sum(map(_with_spare, worst.values()))
    if needed <= machine.gpu_bytes:
        return ""
    parts = ", ".join(f"{name} {in_words(process.gpu_bytes)}" for name, process in worst.items())
    return (
        f"a GPU would hold {parts}; with {1 - SPARE_SHARE:.0%} in reserve, for estimates, that is "
        f"{in_words(needed)}, but it has {in_words(machine.gpu_bytes)}"
    )


def _with_spare(process: ProcessMemory) -> float:
    """Return the memory on a GPU, with a reserve if it is an estimate."""
    return process.gpu_bytes / (1 if process.takes_share else SPARE_SHARE)


_Section = TypeVar("_Section", bound=BaseModel)


def _changed(section: _Section, path: Sequence[str], value: object) -> _Section:
    """Return a section with another value at a path."""
    name, *rest = path
    return section.model_copy(update={name: _changed(getattr(section, name), rest, value) if rest else value})


def _value(config: RunConfig, key: str) -> object:
    found: object = config
    for part in key.split("."):
        found = getattr(found, part)
    return found
