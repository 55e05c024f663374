"""The memory of each process of a stage, from the run's configuration and the sizes of its models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fairlead.config import RunConfig
from fairlead.config.base import ComputeSection
from fairlead.config.serving import DividedSection, ModelServiceSection, RewardSection
from fairlead.config.training import LoraSection, TrainingSection
from fairlead.nn.attention_heads import undivided_heads
from fairlead.planning import formulas, vllm_memory
from fairlead.planning.gpus import engine_gpus
from fairlead.planning.machine import Machine
from fairlead.planning.model_size import ModelSize, critic_size, model_size
from fairlead.planning.process_memory import RUNTIME_BYTES, Lengths, ProcessMemory
from fairlead.planning.vllm_memory import VllmMemory, VllmModel

_HEAP_SHARE = 1.25
"""Memory of the heap of a service on a CPU, as a multiple of one batch (`allocator.HeapBound`).
benchmarks/scoring_memory.py and tests/integration/test_smollm2.py compare plan and peak."""


_TRAINING_HEAP_SHARE = 1.3
"""Memory of activations in training on a CPU, relative to their tensors: freed temporaries leave gaps in the
heap of the C library. tests/integration/test_smollm2.py compares plan and peak."""


_GLOO_COPIES = 2
"""Further copies of gathered weights on a CPU: the buffer in which FSDP receives them, and that of gloo.
benchmarks/rank_memory compares plan and peak."""


class MemoryPlanner:
    """Computes the memory of the processes of one run."""

    def __init__(
        self, config: RunConfig, sizes: Mapping[str, ModelSize], lengths: Lengths, machine: Machine
    ) -> None:
        """
        Args:
            config: the run.
            sizes: sizes of the models `base`, `policy`, `reward`, `reference`, and of those from which
                reward-model training and the preference stage start, `reward_base` and `preference`.
            lengths: lengths of PPO's sequences.
            machine: the machine that they run on.
        """
        self._config = config
        self._sizes = sizes
        self._lengths = lengths
        self._machine = machine

    def sft(self) -> list[ProcessMemory]:
        """Return the process of supervised fine-tuning."""
        section = self._config.sft
        size = self._sizes["base"]
        longest = min(section.max_sequence_tokens, size.max_positions)
        tokens = _largest_batch(section, section.batch_size, longest)
        return [self._trained("sft", size, section, tokens=tokens, longest=longest, lora=section.lora)]

    def reward_model(self) -> list[ProcessMemory]:
        """Return the process of reward-model training. All members of an ensemble are in memory; one is
        trained at a time.
        """
        section = self._config.reward_model
        size = self._sizes["reward_base"]
        longest = min(section.max_sequence_tokens, size.max_positions)
        # A prompt has at least two responses, often four.
        tokens = _largest_batch(section, section.batch_size * 4, longest)
        process = self._trained(
            "reward-model", size, section, tokens=tokens, longest=longest, lora=section.lora, head=True
        )
        return [dataclasses.replace(process, weights=process.weights * section.ensemble_size)]

    def preference(self) -> list[ProcessMemory]:
        """Return the process of the preference stage. The reference is no second model: its log-probs are
        computed before training, with the initial weights.
        """
        section = self._config.preference
        size = self._sizes["preference"]
        longest = min(section.max_sequence_tokens, size.max_positions)
        tokens = _largest_batch(section, section.batch_size * (4 if section.is_paired else 1), longest)
        return [self._trained("preference", size, section, tokens=tokens, longest=longest, lora=section.lora)]

    def ppo(self) -> list[ProcessMemory]:
        """Return the processes of PPO: trainer, model services and rollout workers."""
        config = self._config
        worker = ProcessMemory(
            name="rollout-worker", replicas=config.rollout_worker.replicas, runtime=RUNTIME_BYTES["light"]
        )
        found = [self._trainer(), self._policy(), self._reward(), self._reference(), worker]
        return [process for process in found if process.replicas]

    def _trainer(self) -> ProcessMemory:
        found = self._actor_and_critic()
        section, size = self._config.ppo, self._sizes["policy"]
        if section.ema_decay:
            averaged = formulas.adapter_parameters(size, section.lora) or size.parameters
            found = dataclasses.replace(found, weights=found.weights + averaged * 4 // self._ranks)
        if "heldout_reward" in self._sizes:
            judge = self._sizes["heldout_reward"]
            found = dataclasses.replace(found, weights=found.weights + judge.body * 4 + head_bytes(judge))
        if self._ranks == 1 or not self._config.checkpoint.asynchronous:
            return found
        # The trained weights, which are as large as their gradients, and the moments of Adam.
        return dataclasses.replace(found, copied=found.gradients + found.optimizer)

    def _actor_and_critic(self) -> ProcessMemory:
        section = self._config.ppo
        size = self._sizes["policy"]
        longest = min(self._lengths.sequence, size.max_positions)
        tokens = _largest_batch(
            section,
            section.mini_batch_size // section.answers_per_loss,
            longest * section.answers_per_loss,
        )
        actor = self._trained("trainer", size, section, tokens=tokens, longest=longest, lora=section.lora)
        if not section.has_critic:
            return actor
        start = critic_size(section, self._sizes)
        critic = self._trained(
            "critic", start, section, tokens=tokens, longest=longest, lora=section.lora, head=True
        )
        # The frozen body exists once: the adapters of policy and critic share it.
        shared = section.lora.rank > 0 and section.critic_init != "reward_model"
        base = start.body * formulas.DTYPE_BYTES[section.dtype] if shared else 0
        weights = actor.weights + critic.weights - base // self._ranks
        return dataclasses.replace(
            actor,
            weights=weights,
            gradients=actor.gradients + critic.gradients,
            optimizer=actor.optimizer + critic.optimizer,
            # Policy and critic run one after the other: the first activations are freed before the second.
            # But after the passes without gradients of an update, both hold what is outside of their blocks.
            gathered=max(actor.gathered + self._around(_without_unembedding(start)), critic.gathered),
            loading=weights + formulas.whole_tensors_bytes(start) if self._ranks > 1 else 0,
            activations=max(actor.activations, critic.activations),
        )

    def _around(self, size: ModelSize) -> int:
        """Return the gathered weights outside of the blocks of a model of several ranks."""
        if self._ranks == 1:
            return 0
        dtype, tensor = self._config.ppo.dtype, self._config.ranks.tensor_parallel
        return formulas.around_bytes(size, dtype, tensor=tensor)

    def _policy(self) -> ProcessMemory:
        section = self._config.policy
        size = self._sizes["policy"]
        if section.engine == "vllm":
            return self._of_vllm("policy", section, size)
        lora = self._config.ppo.lora
        longest = min(self._lengths.sequence, section.max_sequence_tokens or size.max_positions)
        weights = size.parameters * formulas.DTYPE_BYTES[section.dtype]
        adapter = formulas.adapter_parameters(size, lora) * 4
        prompts = min(formulas.PREFILL_TOKENS, section.max_slots * self._lengths.prompt)
        prefill = formulas.forward_bytes(size, section.dtype, tokens=prompts, longest=self._lengths.prompt)
        logits = 3 * section.max_slots * size.vocabulary * 4
        return dataclasses.replace(
            self._service("policy", section, size),
            weights=weights + adapter,
            activations=prefill + logits,
            cache=formulas.cache_bytes(size, section.dtype, slots=section.max_slots, longest=longest),
            incoming=adapter if lora.rank else weights,
        )

    def vllm(self) -> dict[str, VllmMemory]:
        """Return the memory of vLLM in each model service whose engine it is."""
        config, sizes, machine = self._config, self._sizes, self._machine
        models: dict[str, VllmModel] = {}
        if config.policy.engine == "vllm":
            models["policy"] = vllm_memory.of_policy(config.policy, sizes["policy"], config.ppo.lora)
        if config.reward.engine == "vllm":
            models["reward"] = vllm_memory.of_scorer("reward", config.reward, sizes["reward"])
        if config.reference.engine == "vllm":
            models["reference"] = vllm_memory.of_scorer("reference", config.reference, sizes["reference"])
        device = self._vllm_device
        device_bytes = machine.gpu_bytes if device == "cuda" else machine.host_bytes
        return {
            name: vllm_memory.vllm_memory(model, device=device, device_bytes=device_bytes)
            for name, model in models.items()
        }

    def _of_vllm(self, name: str, section: ModelServiceSection, size: ModelSize) -> ProcessMemory:
        found = self.vllm()[name]
        process = self._service(name, section, size)
        gpus = engine_gpus(section)
        return dataclasses.replace(
            process,
            gpus=gpus,
            weights=found.weights,
            activations=found.activations + found.beyond,
            cache=max(0, found.cache),
            # `device` has no effect on vLLM, which runs in processes of its own.
            device=self._vllm_device,
            runtime=process.runtime + gpus * vllm_memory.RUNTIME_BYTES,
            takes_share=True,
            problem=found.problem,
        )

    @property
    def _vllm_device(self) -> str:
        return "cuda" if self._machine.has_gpu else "cpu"

    def _reward(self) -> ProcessMemory:
        section = self._config.reward
        size = self._sizes["reward"]
        if section.engine == "vllm":
            return self._of_vllm("reward", section, size)
        if not section.is_model:
            return self._of_terms(section)
        members = self._config.reward_model.ensemble_size if not section.path else 1
        longest = min(self._lengths.sequence, section.max_sequence_tokens or size.max_positions)
        tokens = max(section.batching.max_batch_tokens, longest)
        process = self._divided("reward", section, size)
        body = -(-size.body * formulas.DTYPE_BYTES[section.dtype] // process.gpus)
        return dataclasses.replace(
            process,
            weights=members * (body + head_bytes(size)),
            activations=self._forward(size, section, tokens=tokens, longest=longest),
            cache=self._prefix_cache(size, tokens=tokens, members=members),
        )

    def _of_terms(self, section: RewardSection) -> ProcessMemory:
        """Return the reward service of a function, or of several terms with their models."""
        size = self._sizes["reward"]
        paths = [term.path for term in section.combined.terms.values() if term.path]
        functions = sum(bool(term.function) for term in section.combined.terms.values()) + bool(
            section.function
        )
        process = dataclasses.replace(
            self._service("reward", section, size),
            model=section.function or ", ".join(section.combined.terms),
            runtime=RUNTIME_BYTES["torch" if paths else "light"] + functions * RUNTIME_BYTES["light"],
        )
        if not paths:
            return dataclasses.replace(process, device="cpu")
        models = [model_size(path) for path in paths]
        longest = min(self._lengths.sequence, *(model.max_positions for model in models))
        tokens = max(section.batching.max_batch_tokens, longest)
        dtype = formulas.DTYPE_BYTES[section.dtype]
        return dataclasses.replace(
            process,
            weights=sum(model.body * dtype + head_bytes(model) for model in models),
            activations=sum(self._forward(one, section, tokens=tokens, longest=longest) for one in models),
            cache=sum(self._prefix_cache(model, tokens=tokens, members=1) for model in models),
        )

    def _forward(self, size: ModelSize, section: ModelServiceSection, *, tokens: int, longest: int) -> int:
        """Return the memory of one batch, and on a CPU of what the heap keeps of batches of other sizes."""
        share = _HEAP_SHARE if self._device(section) == "cpu" else 1.0
        return int(share * formulas.forward_bytes(size, section.dtype, tokens=tokens, longest=longest))

    def _prefix_cache(self, size: ModelSize, *, tokens: int, members: int) -> int:
        """Return the memory of cached beginnings, and of those that a batch adds before others are removed.

        Only segments share beginnings; `auto` chooses them on a CPU.
        """
        section = self._config.reward
        others = section.attention in ("padded", "varlen") or section.compile
        automatic = section.attention == "auto" and self._device(section) == "cuda"
        if others or automatic or not (section.share_prompts and section.prefix_cache_bytes):
            return 0
        token_bytes = size.layers * 2 * size.key_value_width * formulas.DTYPE_BYTES[section.dtype]
        return section.prefix_cache_bytes + members * tokens * token_bytes

    def _reference(self) -> ProcessMemory:
        section = self._config.reference
        size = self._sizes["reference"]
        if section.engine == "vllm":
            return self._of_vllm("reference", section, size)
        longest = min(self._lengths.sequence, section.max_sequence_tokens or size.max_positions)
        tokens = max(section.batching.max_batch_tokens, longest)
        process = self._divided("reference", section, size)
        return dataclasses.replace(
            process,
            weights=-(-size.parameters * formulas.DTYPE_BYTES[section.dtype] // process.gpus),
            activations=self._forward(size, section, tokens=tokens, longest=longest)
            + formulas.logits_bytes(size, tokens, self._device(section)),
        )

    def _divided(self, name: str, section: DividedSection, size: ModelSize) -> ProcessMemory:
        """Return a service that may divide its model among processes, with a GPU for each."""
        process = self._service(name, section, size)
        gpus = engine_gpus(section)
        if gpus <= 1:
            return dataclasses.replace(process, replicas=process.replicas * gpus)
        heads = undivided_heads(gpus, attention=size.heads, key_value=size.key_value_heads)
        return dataclasses.replace(
            process,
            gpus=gpus,
            runtime=process.runtime + gpus * RUNTIME_BYTES["torch"],
            problem=f"{name}.tensor_parallel = {gpus} does not divide the {heads}" if heads else "",
        )

    def _service(self, name: str, section: ModelServiceSection, size: ModelSize) -> ProcessMemory:
        on_other_machines = any("://" in address for address in section.addresses)
        return ProcessMemory(
            name=name,
            # An address with a DNS name of a cluster belongs to no process of this machine.
            replicas=0 if on_other_machines else section.replicas,
            device=self._device(section),
            model=size.name,
            runtime=RUNTIME_BYTES["torch"],
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
        """Return a process that trains a model: all its weights, or an adapter on weights in the section's
        data type.
        """
        parameters = size.body if head else size.parameters
        adapter = formulas.adapter_parameters(size, lora) if lora is not None else 0
        if adapter:
            weights = parameters * formulas.DTYPE_BYTES[section.dtype]
            trained = adapter * 4
        else:
            weights = 0
            trained = parameters * 4
        trained += head_bytes(size) if head else 0
        device = self._device(section)
        tensor = self._config.ranks.tensor_parallel if self._ranks > 1 else 1
        activations = formulas.activation_bytes(
            size, section, tokens=tokens, longest=longest, device=device, tensor=tensor
        )
        if device == "cpu":
            activations = int(activations * _TRAINING_HEAP_SHARE)
        gathered = 0
        if self._ranks > 1:
            whole = _without_unembedding(size) if head else size
            gathered = formulas.gathered_bytes(whole, section.dtype, is_trained=not adapter, tensor=tensor)
            gathered *= 1 + _GLOO_COPIES if device == "cpu" else 1
        elif not adapter:
            activations += formulas.autocast_bytes(size, section)
        share = -(-(weights + trained) // self._ranks)
        return ProcessMemory(
            name=name,
            replicas=self._config.ranks.per_node,
            device=device,
            model=size.name,
            weights=share,
            gradients=-(-trained // self._ranks),
            optimizer=-(-2 * trained // self._ranks),
            gathered=gathered,
            activations=activations,
            loading=share + formulas.whole_tensors_bytes(size) if self._ranks > 1 else 0,
            runtime=RUNTIME_BYTES["torch"],
            problem=self._undivided(size),
            is_offloaded=section.offload and self._ranks > 1 and device == "cuda",
        )

    def _undivided(self, size: ModelSize) -> str:
        """Return why the ranks cannot divide the layers of a model; empty if they can."""
        tensor = self._config.ranks.tensor_parallel
        what = f"ranks.tensor_parallel = {tensor} does not divide the"
        if self._ranks % tensor:
            return f"{what} number of ranks, {self._ranks}"
        heads = undivided_heads(tensor, attention=size.heads, key_value=size.key_value_heads)
        return f"{what} {heads}" if heads else ""

    @property
    def _ranks(self) -> int:
        return self._config.ranks.nodes * self._config.ranks.per_node

    def _device(self, section: ComputeSection) -> str:
        return (
            "cuda"
            if section.device == "cuda" or (section.device == "auto" and self._machine.has_gpu)
            else "cpu"
        )


def _largest_batch(section: TrainingSection, sequences: int, longest: int) -> int:
    """Return the tokens of the largest micro-batch, padding included: the limit, or all tokens if they are
    fewer, or one sequence that exceeds the limit.
    """
    return max(min(section.max_micro_batch_tokens, sequences * longest), longest)


def _without_unembedding(size: ModelSize) -> ModelSize:
    """Return the size of the body of a model, as a critic or reward model has it."""
    return dataclasses.replace(size, parameters=size.body, unembedding=0)


def head_bytes(size: ModelSize) -> int:
    """Return the memory of a scalar head in float32."""
    return (size.hidden + 1) * 4
