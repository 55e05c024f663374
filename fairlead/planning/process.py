"""Memory of each process of a stage, from the run's configuration and the sizes of its models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.config import RunConfig
from fairlead.config.base import ComputeSection
from fairlead.config.serving import ModelServiceSection
from fairlead.config.training import LoraSection, TrainingSection
from fairlead.planning import formulas
from fairlead.planning.model_size import ModelSize

RUNTIME_BYTES = {"light": 64 << 20, "torch": 420 << 20, "cuda": 500 << 20}
"""What a process takes before it holds anything: Python alone; with torch and transformers, in main memory;
the context of a GPU. All but the last are measured by tests/unit/fairlead/planning/test_planning.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """One process at its peak, in bytes."""

    name: str
    """As the run names it, without its number."""
    replicas: int = 1
    """Processes of this kind."""
    device: str = "cpu"
    """`cpu` or `cuda`: where all but `runtime` lies."""
    model: str = ""
    """What it loads."""
    weights: int = 0
    """Weights, of policy and critic together."""
    gradients: int = 0
    """Of what learns, float32."""
    optimizer: int = 0
    """Adam's two moments, float32."""
    activations: int = 0
    """Of the largest forward and backward pass; an estimate."""
    cache: int = 0
    """Keys and values of running sequences, at most."""
    incoming: int = 0
    """New weights beside those in use, while they are swapped."""
    runtime: int = 0
    """Python and libraries, in main memory."""

    @property
    def model_bytes(self) -> int:
        """Everything but `runtime`, of one process."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.cache + self.incoming

    def on(self, device: str) -> int:
        """Bytes on `cpu` or `cuda`, of all replicas."""
        if device == "cuda":
            return self.replicas * (self.model_bytes + RUNTIME_BYTES["cuda"]) if self.device == "cuda" else 0
        # Weights for a GPU pass through main memory when they are loaded, saved and published.
        here = self.model_bytes if self.device == "cpu" else self.weights
        return self.replicas * (self.runtime + here)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return dataclasses.asdict(self) | {"total": self.model_bytes + self.runtime}


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of sequences, as far as a configuration tells them."""

    prompt: int
    """The longest prompt."""
    answer: int
    """The longest answer."""

    @property
    def sequence(self) -> int:
        """Both together."""
        return self.prompt + self.answer


class MemoryPlanner:
    """Processes of one run."""

    def __init__(
        self, config: RunConfig, sizes: Mapping[str, ModelSize], lengths: Lengths, *, has_gpu: bool
    ) -> None:
        """
        Args:
            config: the run.
            sizes: of `base`, `policy`, `reward`, `reference`, and `reward_base`, where that model starts.
            lengths: of PPO's sequences.
            has_gpu: what `device = "auto"` means.
        """
        self._config, self._sizes, self._lengths, self._has_gpu = config, sizes, lengths, has_gpu

    def sft(self) -> list[ProcessMemory]:
        """Supervised fine-tuning."""
        section, size = self._config.sft, self._sizes["base"]
        longest = min(section.max_sequence_tokens, size.max_positions)
        tokens = _largest_batch(section, section.batch_size, longest)
        return [self._trained("sft", size, section, tokens=tokens, longest=longest, lora=section.lora)]

    def reward_model(self) -> list[ProcessMemory]:
        """Reward-model training: every member of an ensemble is there, one learns at a time."""
        section, size = self._config.reward_model, self._sizes["reward_base"]
        longest = min(section.max_sequence_tokens, size.max_positions)
        # A prompt has at least two responses, and often four.
        tokens = _largest_batch(section, section.batch_size * 4, longest)
        process = self._trained("reward-model", size, section, tokens=tokens, longest=longest, head=True)
        return [dataclasses.replace(process, weights=process.weights * section.ensemble_size)]

    def ppo(self) -> list[ProcessMemory]:
        """Trainer, services, rollout workers, queue."""
        config = self._config
        worker = ProcessMemory(
            name="rollout-worker", replicas=config.rollout_worker.replicas, runtime=RUNTIME_BYTES["light"]
        )
        found = [self._trainer(), self._policy(), self._reward(), self._reference(), worker]
        return [process for process in found if process.replicas]

    def _trainer(self) -> ProcessMemory:
        section, size = self._config.ppo, self._sizes["policy"]
        longest = min(self._lengths.sequence, size.max_positions)
        tokens = _largest_batch(section, section.mini_batch_size, longest)
        actor = self._trained("trainer", size, section, tokens=tokens, longest=longest, lora=section.lora)
        start = self._sizes["reward"] if section.critic_init == "reward_model" else size
        critic = self._trained(
            "critic", start, section, tokens=tokens, longest=longest, lora=section.lora, head=True
        )
        # A frozen body is there once: the critic's adapter sits on the policy's.
        shared = section.lora.rank > 0 and section.critic_init == "policy"
        base = start.body * formulas.DTYPE_BYTES[section.dtype] if shared else 0
        return dataclasses.replace(
            actor,
            weights=actor.weights + critic.weights - base,
            gradients=actor.gradients + critic.gradients,
            optimizer=actor.optimizer + critic.optimizer,
            # One after the other: the policy's are gone when the critic's begin.
            activations=max(actor.activations, critic.activations),
        )

    def _policy(self) -> ProcessMemory:
        section, size, lora = self._config.policy, self._sizes["policy"], self._config.ppo.lora
        bytes_each = formulas.DTYPE_BYTES[section.dtype]
        longest = min(self._lengths.sequence, section.max_sequence_tokens or size.max_positions)
        weights = size.parameters * bytes_each
        adapter = formulas.adapter_parameters(size, lora) * 4
        prompts = min(formulas.PREFILL_TOKENS, section.max_slots * self._lengths.prompt)
        prefill = formulas.forward_bytes(size, section.dtype, tokens=prompts, longest=self._lengths.prompt)
        logits = 3 * section.max_slots * size.vocabulary * 4
        return self._service(
            "policy",
            section,
            size,
            weights=weights + adapter,
            activations=prefill + logits,
            cache=formulas.cache_bytes(size, section.dtype, slots=section.max_slots, longest=longest),
            incoming=adapter if lora.rank else weights,
        )

    def _reward(self) -> ProcessMemory:
        section, size = self._config.reward, self._sizes["reward"]
        members = self._config.reward_model.ensemble_size if not section.path else 1
        longest = min(self._lengths.sequence, section.max_sequence_tokens or size.max_positions)
        tokens = max(section.batching.max_batch_tokens, longest)
        return self._service(
            "reward",
            section,
            size,
            weights=members * (size.body * formulas.DTYPE_BYTES[section.dtype] + head_bytes(size)),
            activations=formulas.forward_bytes(size, section.dtype, tokens=tokens, longest=longest),
        )

    def _reference(self) -> ProcessMemory:
        section, size = self._config.reference, self._sizes["reference"]
        longest = min(self._lengths.sequence, section.max_sequence_tokens or size.max_positions)
        tokens = max(section.batching.max_batch_tokens, longest)
        return self._service(
            "reference",
            section,
            size,
            weights=size.parameters * formulas.DTYPE_BYTES[section.dtype],
            activations=formulas.forward_bytes(size, section.dtype, tokens=tokens, longest=longest)
            + formulas.logits_bytes(size, tokens, self._device(section)),
        )

    def _service(
        self, name: str, section: ModelServiceSection, size: ModelSize, **parts: int
    ) -> ProcessMemory:
        elsewhere = any("://" in address for address in section.addresses)
        return ProcessMemory(
            name=name,
            # Behind a name of the cluster it is no process of this machine.
            replicas=0 if elsewhere else section.replicas,
            device=self._device(section),
            model=size.name,
            runtime=RUNTIME_BYTES["torch"],
            **parts,
        )

    def _trained(
        self,
        name: str,
        size: ModelSize,
        section: TrainingSection,
        *,
        tokens: int,
        longest: int,
        lora: LoraSection | None = None,
        head: bool = False,
    ) -> ProcessMemory:
        """A model that learns: all of it, or an adapter on weights in the section's own type."""
        parameters = size.body if head else size.parameters
        adapter = formulas.adapter_parameters(size, lora) if lora is not None else 0
        if adapter:
            weights, learning = parameters * formulas.DTYPE_BYTES[section.dtype], adapter * 4
        else:
            weights, learning = 0, parameters * 4
        learning += head_bytes(size) if head else 0
        device = self._device(section)
        activations = formulas.activation_bytes(size, section, tokens=tokens, longest=longest, device=device)
        return ProcessMemory(
            name=name,
            device=device,
            model=size.name,
            weights=weights + learning,
            gradients=learning,
            optimizer=2 * learning,
            activations=activations + (0 if adapter else formulas.autocast_bytes(size, section)),
            runtime=RUNTIME_BYTES["torch"],
        )

    def _device(self, section: ComputeSection) -> str:
        return "cuda" if section.device == "cuda" or (section.device == "auto" and self._has_gpu) else "cpu"


def _largest_batch(section: TrainingSection, sequences: int, longest: int) -> int:
    """Padded tokens of the largest micro-batch: the budget, or all there is, or one sequence beyond it."""
    return max(min(section.max_micro_batch_tokens, sequences * longest), longest)


def head_bytes(size: ModelSize) -> int:
    """A scalar head, float32."""
    return (size.hidden + 1) * 4
