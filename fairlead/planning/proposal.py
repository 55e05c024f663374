"""Settings with which PPO fits on given GPUs: ranks, recomputed blocks, smaller batches, adapters, and models
that are divided among GPUs.

Tries what costs least first and stops at the first plan that fits. Knows the sizes from `plan`; runs nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

from fairlead.config import RunConfig
from fairlead.planning.formulas import in_words
from fairlead.planning.gpus import engine_gpus
from fairlead.planning.machine import Machine
from fairlead.planning.plan import RunPlan, model_sizes, plan_run, prompt_tokens_of
from fairlead.planning.process import MemoryPlanner
from fairlead.planning.process_memory import Lengths, ProcessMemory

ADAPTER_RANK = 16
"""Rank of the adapters that are proposed if training all weights does not fit."""
SPARE_SHARE = 0.9
"""Share of a GPU that a plan may fill: activations are estimates, and allocators leave gaps. It does not
apply to vLLM, which takes what it is given."""
_SCORERS = ("reward", "reference")
_BYTES_16 = {"ppo.dtype": "bfloat16"} | {f"{name}.dtype": "bfloat16" for name in ("policy", *_SCORERS)}

Settings = Mapping[str, object]
"""Changes of the configuration, by dotted key."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The settings that make a run fit, or what is in the way."""

    settings: Settings
    """What to change."""
    plan: RunPlan
    """The plan with these settings; if nothing fits, that of the settings that need least."""
    obstacle: str = ""
    """Why nothing fits; empty if the plan fits."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the model services use GPUs."""

    batch_tokens: int
    """Maximum tokens of a batch of the reward and reference services."""
    slots: int
    """Maximum number of sequences that are decoded at a time."""
    is_shared: bool = False
    """Whether services share GPUs: each model is divided as far as possible, and vLLM takes a smaller
    share."""
    uses_vllm: bool = False
    """Whether vLLM replaces another engine of the policy: its cache takes less memory."""


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
    return _Search(config, machine, nodes, tokens).run()


class _Search:
    """Plans of one run with different settings."""

    def __init__(self, config: RunConfig, machine: Machine, nodes: int, prompt_tokens: int) -> None:
        self._given = config
        self._config = with_settings(config, _BYTES_16)
        self._machine = machine
        self._nodes = nodes
        self._tokens = prompt_tokens
        self._sizes = model_sizes(config, [])

    def run(self) -> Proposal:
        """Return the first proposal that fits, or the last one."""
        found: Proposal | None = None
        for settings in self._candidates():
            changed = with_settings(self._given, settings)
            plan = plan_run(changed, machine=self._machine, prompt_tokens=self._tokens, sizes=self._sizes)
            found = Proposal(settings, plan, obstacle(plan))
            if not found.obstacle:
                return found
        assert found is not None
        return found

    def _candidates(self) -> Iterator[Settings]:
        """Yield settings: those that cost least first, those that need least last."""
        section = self._config.ppo
        layouts = [self._services(layout) for layout in self._layouts()]
        batches = [section.max_micro_batch_tokens]
        while batches[-1] > 2_048:
            batches.append(batches[-1] // 2)
        recompute = sorted({section.gradient_checkpointing, True})
        for trained, services, tokens, recomputed in itertools.product(
            self._trained(), layouts, batches, recompute
        ):
            for per_node in self._ranks(services):
                settings = {
                    **_BYTES_16,
                    **services,
                    **trained,
                    "ranks.nodes": self._nodes,
                    "ranks.per_node": per_node,
                    "ppo.gradient_checkpointing": recomputed,
                    "ppo.max_micro_batch_tokens": tokens,
                }
                if trained["ppo.offload"] and self._nodes * per_node == 1:
                    continue
                yield {key: value for key, value in settings.items() if value != _value(self._given, key)}

    def _trained(self) -> Iterator[dict[str, object]]:
        """Yield what is trained, and where its state is: all weights, adapters, and adapters on a base in the
        memory of the host.
        """
        section = self._config.ppo
        given = section.lora.rank
        if not given:
            yield {"ppo.lora.rank": 0, "ppo.offload": section.offload}
        for offload in sorted({section.offload, True}):
            yield {"ppo.lora.rank": given or ADAPTER_RANK, "ppo.offload": offload}

    def _layouts(self) -> tuple[_Layout, ...]:
        batch = max(self._batch_tokens(name) for name in _SCORERS)
        slots = self._config.policy.max_slots
        return (
            _Layout(batch, slots),
            _Layout(min(batch, 4_096), min(slots, 32)),
            _Layout(min(batch, 2_048), min(slots, 16), is_shared=True),
            _Layout(min(batch, 2_048), min(slots, 16), is_shared=True, uses_vllm=True),
        )

    def _services(self, layout: _Layout) -> dict[str, object]:
        """Return the settings of the model services for a layout."""
        found: dict[str, object] = {"policy.max_slots": layout.slots}
        for name in _SCORERS:
            batch = min(self._batch_tokens(name), layout.batch_tokens)
            found[f"{name}.batching.max_batch_tokens"] = batch
        for name in _SCORERS:
            found |= self._division(name, f"{name}.tensor_parallel", found, layout)
        is_vllm = self._config.policy.engine == "vllm" or layout.uses_vllm
        if is_vllm or not self._has_space("policy", found):
            found["policy.engine"] = "vllm"
            found |= self._division("policy", "policy.vllm.tensor_parallel_size", found, layout)
            if layout.is_shared:
                found["policy.vllm.gpu_memory_utilization"] = self._smallest_share(found)
        return found

    def _division(self, name: str, key: str, settings: Settings, layout: _Layout) -> dict[str, object]:
        """Return the number of GPUs among which a service divides its model: as few as it can, or as many if
        services share them.
        """
        size = self._sizes[name]
        whole = (size.heads,) if name == "policy" else (size.heads, size.key_value_heads)
        numbers = [
            number
            for number in (1, 2, 4, 8, 16)
            if number <= self._machine.num_gpus and not any(heads % number for heads in whole)
        ]
        if layout.is_shared:
            return {key: numbers[-1]}
        given = _value(self._config, key) or 1
        assert isinstance(given, int)
        numbers = [number for number in numbers if number >= given] or [given]
        fitting = (number for number in numbers if self._has_space(name, {**settings, key: number}))
        return {key: next(fitting, numbers[-1])}

    def _has_space(self, name: str, settings: Settings) -> bool:
        """Return whether one service fits on GPUs of its own; vLLM also with half of its slots in use."""
        planner = self._planner(settings)
        process = next((one for one in planner.ppo() if one.name == name), None)
        if process is None:  # on another machine, or the trainer takes its place
            return True
        if process.problem or _with_spare(process) > self._machine.gpu_bytes:
            return False
        engine = planner.vllm().get(name)
        return name != "policy" or engine is None or engine.cached_tokens >= self._cached(settings)

    def _smallest_share(self, settings: Settings) -> float:
        """Return the share of a GPU with which vLLM decodes half of its slots."""
        engine = self._planner(settings).vllm()["policy"]
        needed = engine.weights + engine.activations + self._cached(settings) * engine.token_bytes
        return min(1.0, math.ceil(100 * needed / self._machine.gpu_bytes) / 100)

    def _cached(self, settings: Settings) -> int:
        """Return the tokens that the cache of the policy should hold."""
        section = with_settings(self._config, settings).policy
        longest = section.max_sequence_tokens or self._sizes["policy"].max_positions
        return max(longest, section.max_slots * self._lengths.sequence // 2)

    @property
    def _lengths(self) -> Lengths:
        return Lengths(self._tokens, self._config.sampling.max_new_tokens)

    def _planner(self, settings: Settings) -> MemoryPlanner:
        return MemoryPlanner(with_settings(self._config, settings), self._sizes, self._lengths, self._machine)

    def _ranks(self, services: Settings) -> list[int]:
        """Return numbers of ranks per node: with a GPU for every service, then fewer, then shared ones."""
        config, gpus = with_settings(self._config, services), self._machine.num_gpus
        pods = [
            engine_gpus(section)
            for section in (config.policy, config.reward, config.reference)
            for _ in range(section.replicas)
        ]
        if self._nodes > 1:
            most = max(1, (self._nodes * gpus - sum(pods)) // self._nodes)
            fitting = (
                number for number in range(most, 0, -1) if self._pods_fit([*pods, *[number] * self._nodes])
            )
            return [next(fitting, most)]
        return [*range(max(1, gpus - sum(pods)), gpus + 1)]

    def _pods_fit(self, pods: Sequence[int]) -> bool:
        """Return whether pods with these numbers of GPUs fit on the nodes, the largest first."""
        free = [self._machine.num_gpus] * self._nodes
        for pod in sorted(pods, reverse=True):
            node = next((index for index, number in enumerate(free) if number >= pod), None)
            if node is None:
                return False
            free[node] -= pod
        return True

    def _batch_tokens(self, name: str) -> int:
        config = self._config
        return (config.reward if name == "reward" else config.reference).batching.max_batch_tokens


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


def with_settings(config: RunConfig, settings: Settings) -> RunConfig:
    """Return a configuration with other values, by dotted key; they are not checked."""
    for key, value in settings.items():
        config = _changed(config, key.split("."), value)
    return config


_Section = TypeVar("_Section", bound=BaseModel)


def _changed(section: _Section, path: Sequence[str], value: object) -> _Section:
    """Return a section with another value at a path."""
    name, *rest = path
    inner = getattr(section, name)
    if rest and isinstance(inner, Mapping):
        value = {**inner, rest[0]: value}
    elif rest:
        value = _changed(inner, rest, value)
    return section.model_copy(update={name: value})


def _value(config: RunConfig, key: str) -> object:
    found: object = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else getattr(found, part)
    return found
