"""The only definition of a log-probability, used by policy engine, reference and trainer.

log-softmax in float32 of logits ÷ temperature, gathered at the token, computed in chunks of rows so that no
float32 tensor of the size of all logits exists.

Shapes: B batch, T token positions, V vocabulary, H hidden, N = rows of any leading shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_Result = TypeVar("_Result")

OfLogits = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""Computes log-probs and entropies [N] from logits [N, V], ids [N] and a temperature."""

CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits computed at a time; fastest on a CPU by benchmarks/logprobs.py, 256 MiB on a GPU."""


def at_least_float32(values: Tensor) -> Tensor:
    """Convert to float32; float64, in which tests compute, is kept."""
    return values if values.dtype == torch.float64 else values.float()


def token_logprobs(logits_NV: Tensor, tokens_N: Tensor, *, temperature: float) -> Tensor:
    """Return log p(token) for each row of logits.

    Args:
        logits_NV: logits of any float type, shape [..., V].
        tokens_N: ids, shape [...].
        temperature: divides the logits; 0 counts as 1 (log-probs of greedy answers).

    Returns:
        float32, shape [...].
    """
    logprobs_NV = scaled(logits_NV, temperature).log_softmax(-1)
    return logprobs_NV.gather(-1, tokens_N.unsqueeze(-1)).squeeze(-1)


def entropy(logits_NV: Tensor, *, temperature: float) -> Tensor:
    """Return the entropy in nats of softmax(logits ÷ temperature), float32, shape [...]."""
    logprobs_NV = scaled(logits_NV, temperature).log_softmax(-1)
    return -(logprobs_NV.exp() * logprobs_NV).sum(-1)


def scaled(logits_NV: Tensor, temperature: float) -> Tensor:
    """Divide logits by the temperature, in float32; 0 counts as 1.

    At 1 nothing is copied: that pass would cost a tenth of the total.
    """
    logits_NV = at_least_float32(logits_NV)
    return logits_NV if temperature in (0.0, 1.0) else logits_NV / temperature


def logprobs_and_entropies(logits_NV: Tensor, tokens_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the results of `token_logprobs`, and of `entropy` without gradient."""
    with torch.no_grad():
        entropy_N = entropy(logits_NV, temperature=temperature)
    return token_logprobs(logits_NV, tokens_N, temperature=temperature), entropy_N


def hidden_logprobs(
    hidden_NH: Tensor,
    unembedding: torch.nn.Module,
    tokens_N: Tensor,
    *,
    temperature: float,
    chunk_rows: int | None = None,
) -> Tensor:
    """Return the log-probs of tokens from hidden states, chunk by chunk.

    With gradients enabled, the logits of a chunk are recomputed in the backward pass instead of being kept.

    Args:
        hidden_NH: last hidden states at the positions that predict the tokens, shape [N, H].
        unembedding: the output layer, H → V.
        tokens_N: ids, shape [N].
        temperature: as in `token_logprobs`.
        chunk_rows: rows of logits computed at a time; derived from CHUNK_LOGITS if not given.

    Returns:
        log-probs [N], float32.
    """

    def chunk(hidden_CH: Tensor, tokens_C: Tensor) -> Tensor:
        return token_logprobs(unembedding(hidden_CH), tokens_C, temperature=temperature)

    return torch.cat(
        _each_chunk(chunk, hidden_NH, tokens_N, chunk_rows or _chunk_rows(unembedding, hidden_NH))
    )


def hidden_logprobs_and_entropies(
    hidden_NH: Tensor,
    unembedding: torch.nn.Module,
    tokens_N: Tensor,
    *,
    temperature: float,
    chunk_rows: int | None = None,
    of_logits: OfLogits = logprobs_and_entropies,
) -> tuple[Tensor, Tensor]:
    """Return the result of `hidden_logprobs`, and the entropies [N] of the same distributions without
    gradient.

    Args:
        hidden_NH: as in `hidden_logprobs`, and the next three.
        unembedding: the output layer.
        tokens_N: ids.
        temperature: divides the logits.
        chunk_rows: rows of logits computed at a time.
        of_logits: computes both from the output of the layer, which may be a part of the logits.
    """

    def chunk(hidden_CH: Tensor, tokens_C: Tensor) -> tuple[Tensor, Tensor]:
        return of_logits(unembedding(hidden_CH), tokens_C, temperature)

    parts = _each_chunk(chunk, hidden_NH, tokens_N, chunk_rows or _chunk_rows(unembedding, hidden_NH))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _chunk_rows(unembedding: torch.nn.Module, hidden_NH: Tensor) -> int:
    vocabulary_size = next(unembedding.parameters()).shape[0]
    return max(1, CHUNK_LOGITS.get(hidden_NH.device.type, CHUNK_LOGITS["cuda"]) // vocabulary_size)


def _each_chunk(
    chunk: Callable[[Tensor, Tensor], _Result], hidden_NH: Tensor, tokens_N: Tensor, chunk_rows: int
) -> list[_Result]:
    """Apply `chunk` to each piece; to an empty one if there are no rows."""
    recompute = torch.is_grad_enabled() and hidden_NH.requires_grad and hidden_NH.shape[0] > chunk_rows
    results = []
    for start in range(0, max(1, hidden_NH.shape[0]), chunk_rows):
        rows = hidden_NH[start : start + chunk_rows], tokens_N[start : start + chunk_rows]
        results.append(checkpoint(chunk, *rows, use_reentrant=False) if recompute else chunk(*rows))
    return results
