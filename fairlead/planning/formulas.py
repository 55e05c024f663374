"""Memory of a model in use, in bytes, by formula. A test compares each formula with real tensors.

Weights, gradients and optimizer state are counted exactly. Activations are estimated, per token and block: 12
times the width, 4 times the feed-forward width (gate, up, their activation and product; 2 to 4.5 in models
without a gate) and one row of the attention mask. The estimate follows Korthikanti et al. 2022 (§4), for the
tensors that transformers' blocks and scaled dot-product attention keep. The measured peak is 0.5 to 1.25
times the estimate for every architecture of that test.
"""

from __future__ import annotations

from fairlead.config.base import DType
from fairlead.config.training import LoraSection, TrainingSection
from fairlead.planning.model_size import ModelSize

DTYPE_BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2}
CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits that are computed at a time, by device; a copy of the constant in fairlead/nn/logprobs.py, which
this package must not import, as the next two are."""
CHUNK_ROWS = 128
"""Rows of logits that are computed at a time at least."""
KEPT_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits of a trained output layer that are kept for the backward pass."""
PREFILL_TOKENS = 8_192
"""Prompt tokens of one forward pass; a copy of the constant in services/policy/decoder.py."""

_CHUNK_COPIES = 4
"""Copies of a chunk in float32: logits, log-softmax, probabilities, and their product or the gradient."""
_AUTOCAST_SHARE = 0.6
"""Activations under bfloat16, as a fraction of those in float32: the inputs of matrix products are halved,
norms and rotations are not."""
_WHOLE_TENSORS = 3
"""One that is written, one that waits, and one that is gathered (trainer/distributed/whole_files.py)."""


def in_words(size: float) -> str:
    """Return a number of bytes as text, such as 512 B, 3.2 MiB or 16 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB" if size < 1000 else f"{size:,.0f} TiB"


def adapter_parameters(size: ModelSize, lora: LoraSection) -> int:
    """Return the number of parameters of a low-rank adapter on every linear layer of the blocks, which is the
    maximum.
    """
    return lora.rank * sum(rows + columns for rows, columns in size.matrices)


def activation_bytes(
    size: ModelSize, section: TrainingSection, *, tokens: int, longest: int, device: str, tensor: int = 1
) -> int:
    """Return the memory that a forward pass keeps for its backward pass, with the working memory of the
    backward pass.

    Args:
        size: the model.
        section: memory limits, data type and gradient checkpointing.
        tokens: tokens of the largest micro-batch, padding included.
        longest: tokens of its longest row.
        device: `cpu` or `cuda`.
        tensor: ranks among which the layers are divided.
    """
    share = _AUTOCAST_SHARE if section.dtype == "bfloat16" else 1.0
    block = int(tokens * _block_floats(size, longest, tensor) * 4 * share)
    around = 4 * tokens * size.hidden * 4
    logits = logits_bytes(size, tokens, device) // tensor
    if section.gradient_checkpointing:
        # Logits are freed before the last block is recomputed.
        return size.layers * tokens * size.hidden * 4 + around + max(block, logits)
    return size.layers * block + around + logits


def forward_bytes(size: ModelSize, dtype: DType, *, tokens: int, longest: int) -> int:
    """Return the memory of a forward pass without gradients: that of one block."""
    return tokens * (_block_floats(size, longest) + 2 * size.hidden) * DTYPE_BYTES[dtype]


def logits_bytes(size: ModelSize, tokens: int, device: str) -> int:
    """Return the memory of the logits from which log-probs are computed: all up to a limit, or a chunk."""
    logits = tokens * size.vocabulary
    if logits > KEPT_LOGITS[device]:
        logits = min(logits, max(KEPT_LOGITS[device], CHUNK_ROWS * size.vocabulary))
    return logits * 4 * _CHUNK_COPIES


def cache_bytes(size: ModelSize, dtype: DType, *, slots: int, longest: int) -> int:
    """Return the memory of the keys and values of all slots with the longest answer. The cache allocates
    twice the length that is needed.
    """
    return slots * 2 * (longest + 1) * size.layers * 2 * size.key_value_width * DTYPE_BYTES[dtype]


def whole_tensors_bytes(size: ModelSize) -> int:
    """Return the memory of the whole tensors, in float32, that one of several ranks holds while it writes
    those it owns: it gathers the next ones while one is written.
    """
    largest = max([size.vocabulary * size.hidden, *(rows * columns for rows, columns in size.matrices)])
    return min(_WHOLE_TENSORS * largest, size.parameters) * 4


def gathered_bytes(size: ModelSize, dtype: DType, *, is_trained: bool, tensor: int = 1) -> int:
    """Return the memory of what one of several ranks gathers from the others to compute.

    That is everything outside of the blocks until the backward pass has ended, and two blocks, as the next is
    fetched in advance; and the gradients of both before they are divided again.

    Args:
        size: the model.
        dtype: data type in which it computes.
        is_trained: whether the gathered weights have gradients; frozen ones under an adapter have none.
        tensor: ranks among which the layers are divided; each gathers only its part of them.
    """
    blocks = sum(rows * columns for rows, columns in size.matrices)
    block = blocks // max(1, size.layers)
    gradients = size.parameters - blocks + block if is_trained else 0
    return around_bytes(size, dtype, tensor=tensor) + (2 * block + gradients) * DTYPE_BYTES[dtype] // tensor


def around_bytes(size: ModelSize, dtype: DType, *, tensor: int = 1) -> int:
    """Return the memory of the gathered weights outside of the blocks. A rank holds them from a forward pass
    to the end of the next backward pass of the same model.

    The arguments are those of `gathered_bytes`.
    """
    blocks = sum(rows * columns for rows, columns in size.matrices)
    return (size.parameters - blocks) * DTYPE_BYTES[dtype] // tensor


def autocast_bytes(size: ModelSize, section: TrainingSection) -> int:
    """Return the memory of the bfloat16 copies of float32 weights that a bfloat16 pass makes and keeps."""
    return size.body * 2 if section.dtype == "bfloat16" else 0


def _block_floats(size: ModelSize, longest: int, tensor: int = 1) -> int:
    # Queries, keys, values, both rotated, and what attention returns are divided; the residual stream is not.
    divided = 6 * size.hidden + 4 * size.intermediate
    return -(-divided // tensor) + 6 * size.hidden + longest
