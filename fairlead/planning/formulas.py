"""Bytes of models at work, by formula; each is tested against real tensors.

Weights, gradients and optimizer are counted. Activations are an estimate, per token and block of 12 widths,
4 feed-forward widths (gate, up, their activation and product; 2 to 4.5 without a gate) and a row of the
attention mask, in the spirit of Korthikanti et al. 2022 (§4), with what transformers' blocks and scaled
dot-product attention keep. The peak measured is 0.5 to 1.25 of it for every architecture of that test.
"""

from __future__ import annotations

from fairlead.config.base import DType
from fairlead.config.training import LoraSection, TrainingSection
from fairlead.planning.model_size import ModelSize

DTYPE_BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2}
CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits that exist at a time: that of fairlead/nn/logprobs.py, which this part must not import."""
PREFILL_TOKENS = 8_192
"""Prompt tokens of one forward pass: that of services/policy/decoder.py."""

_CHUNK_COPIES = 3
"""Of a chunk: logits, log-softmax, gradient; float32."""
_AUTOCAST_SHARE = 0.6
"""Of float32's activations under bfloat16: matrices' inputs are halved, norms and rotations are not."""


def adapter_parameters(size: ModelSize, lora: LoraSection) -> int:
    """Parameters of a low-rank adapter on every linear layer of the blocks, the most that one may have."""
    return lora.rank * sum(rows + columns for rows, columns in size.matrices)


def activation_bytes(
    size: ModelSize, section: TrainingSection, *, tokens: int, longest: int, device: str
) -> int:
    """What a forward pass keeps for its backward pass, and that pass's own work.

    Args:
        size: the model.
        section: budget, dtype and whether blocks are computed again.
        tokens: padded tokens of the largest micro-batch.
        longest: tokens of its longest row.
        device: `cpu` or `cuda`.
    """
    share = _AUTOCAST_SHARE if section.dtype == "bfloat16" else 1.0
    block = int(tokens * _block_floats(size, longest) * 4 * share)
    around, logits = 4 * tokens * size.hidden * 4, logits_bytes(size, tokens, device)
    if section.gradient_checkpointing:
        # Logits are gone when the last block is computed again.
        return size.layers * tokens * size.hidden * 4 + around + max(block, logits)
    return size.layers * block + around + logits


def forward_bytes(size: ModelSize, dtype: DType, *, tokens: int, longest: int) -> int:
    """What a forward pass without gradients holds at a time: one block at work."""
    return tokens * (_block_floats(size, longest) + 2 * size.hidden) * DTYPE_BYTES[dtype]


def logits_bytes(size: ModelSize, tokens: int, device: str) -> int:
    """The chunk of logits that log-probs are made from."""
    return min(CHUNK_LOGITS[device], tokens * size.vocabulary) * 4 * _CHUNK_COPIES


def cache_bytes(size: ModelSize, dtype: DType, *, slots: int, longest: int) -> int:
    """Keys and values of every slot at the longest answer; the block of memory is twice as long as needed."""
    return slots * 2 * (longest + 1) * size.layers * 2 * size.key_value_width * DTYPE_BYTES[dtype]


def autocast_bytes(size: ModelSize, section: TrainingSection) -> int:
    """The copies of the weights that a bfloat16 pass over float32 weights makes and keeps."""
    return size.body * 2 if section.dtype == "bfloat16" else 0


def _block_floats(size: ModelSize, longest: int) -> int:
    return 12 * size.hidden + 4 * size.intermediate + longest
