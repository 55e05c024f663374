"""The only definition of a log-probability, used by policy engine, reference and trainer.

log-softmax in float32 of logits ÷ temperature, gathered at the token, computed in chunks of rows so that no
float32 tensor of the size of all logits exists.

Shapes: B batch, T token positions, V vocabulary, H hidden, N = rows of any leading shape, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

from fairlead.nn.linear import OneDnnLinear, product

_Result = TypeVar("_Result")

OfLogits = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""Computes log-probs and entropies [N] from logits [N, V], ids [N] and a temperature."""

CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits computed at a time; fastest on a CPU by benchmarks/logprobs.py, 256 MiB on a GPU."""
CHUNK_ROWS = 128
"""Rows of a chunk at least: with fewer, the product with the unembedding of a large vocabulary is slower
(benchmarks/logprobs.py)."""
KEPT_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits that are kept for the backward pass of a trained unembedding instead of being recomputed."""


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

    Args:
        hidden_NH: last hidden states at the positions that predict the tokens, shape [N, H].
        unembedding: the output layer, H → V.
        tokens_N: ids, shape [N].
        temperature: as in `token_logprobs`.
        chunk_rows: rows of logits computed at a time; derived from the constants above if not given.

    Returns:
        log-probs [N], float32.
    """
    rows = chunk_rows or _chunk_rows(unembedding, hidden_NH)
    if _has_own_gradient(unembedding, hidden_NH, rows):
        return _Logprobs.of(hidden_NH, unembedding, tokens_N, _Chunks(rows, temperature, False))[0]

    def chunk(hidden_CH: Tensor, tokens_C: Tensor) -> Tensor:
        return token_logprobs(unembedding(hidden_CH), tokens_C, temperature=temperature)

    return torch.cat(_each_chunk(chunk, hidden_NH, tokens_N, rows))


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
    rows = chunk_rows or _chunk_rows(unembedding, hidden_NH)
    is_whole = of_logits is logprobs_and_entropies
    if is_whole and _has_own_gradient(unembedding, hidden_NH, rows):
        return _Logprobs.of(hidden_NH, unembedding, tokens_N, _Chunks(rows, temperature, True))

    def chunk(hidden_CH: Tensor, tokens_C: Tensor) -> tuple[Tensor, Tensor]:
        return of_logits(unembedding(hidden_CH), tokens_C, temperature)

    parts = _each_chunk(chunk, hidden_NH, tokens_N, rows)
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _chunk_rows(unembedding: torch.nn.Module, hidden_NH: Tensor) -> int:
    weight = next(unembedding.parameters())
    device = hidden_NH.device.type
    count, vocabulary_size = hidden_NH.shape[0], weight.shape[0]
    is_kept = _is_recorded(hidden_NH) and weight.requires_grad
    if is_kept and count * vocabulary_size <= KEPT_LOGITS.get(device, KEPT_LOGITS["cuda"]):
        return max(1, count)
    return max(CHUNK_ROWS, CHUNK_LOGITS.get(device, CHUNK_LOGITS["cuda"]) // vocabulary_size)


def _is_recorded(hidden_NH: Tensor) -> bool:
    return torch.is_grad_enabled() and hidden_NH.requires_grad


def _has_own_gradient(unembedding: torch.nn.Module, hidden_NH: Tensor, chunk_rows: int) -> bool:
    """Return whether `_Logprobs` applies: several chunks of a linear layer that is whole, with a gradient."""
    if not isinstance(unembedding, torch.nn.Linear) or type(unembedding) not in (
        torch.nn.Linear,
        OneDnnLinear,
    ):
        return False
    if not (unembedding.bias is None and _is_recorded(hidden_NH) and hidden_NH.shape[0] > chunk_rows):
        return False
    return type(unembedding.weight) in (Tensor, torch.nn.Parameter)


def _each_chunk(
    chunk: Callable[[Tensor, Tensor], _Result], hidden_NH: Tensor, tokens_N: Tensor, chunk_rows: int
) -> list[_Result]:
    """Apply `chunk` to each piece; to an empty one if there are no rows.

    With a gradient, the logits of several chunks are recomputed in the backward pass instead of being kept.
    """
    recompute = _is_recorded(hidden_NH) and hidden_NH.shape[0] > chunk_rows
    results = []
    for start in range(0, max(1, hidden_NH.shape[0]), chunk_rows):
        rows = hidden_NH[start : start + chunk_rows], tokens_N[start : start + chunk_rows]
        results.append(checkpoint(chunk, *rows, use_reentrant=False) if recompute else chunk(*rows))
    return results


@dataclass(frozen=True, slots=True)
class _Chunks:
    """How `_Logprobs` computes."""

    rows: int
    temperature: float
    with_entropies: bool

    def of(self, count: int) -> Iterator[slice]:
        """Yield the rows of each chunk."""
        for start in range(0, count, self.rows):
            yield slice(start, start + self.rows)


class _Logprobs(torch.autograd.Function):
    """log p of a token from hidden states, chunk by chunk, with the gradient in closed form.

    ∇h log p(y) = (W_y − Σ_v p_v W_v) ÷ temperature. It does not depend on the gradient of the loss but for a
    factor for each row. So with frozen weights the forward pass computes it, and no logits are kept or
    computed twice; with trained weights the backward pass computes the logits of each chunk once more.
    """

    @classmethod
    def of(
        cls, hidden_NH: Tensor, unembedding: torch.nn.Module, tokens_N: Tensor, chunks: _Chunks
    ) -> tuple[Tensor, Tensor]:
        """Return log-probs [N] and entropies [N], which are 0 if they are not wanted."""
        found: tuple[Tensor, Tensor] = cls.apply(  # type: ignore[no-untyped-call]
            hidden_NH, unembedding.weight, tokens_N, unembedding, chunks
        )
        return found

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        tokens_N: Tensor,
        unembedding: torch.nn.Module,
        chunks: _Chunks,
    ) -> tuple[Tensor, Tensor]:
        """Return both, and with frozen weights keep the gradient of each row."""
        is_trained = ctx.needs_input_grad[1]  # type: ignore[attr-defined]
        logprobs: list[Tensor] = []
        entropies: list[Tensor] = []
        gradients: list[Tensor] = []
        for rows in chunks.of(hidden_NH.shape[0]):
            logits_CV = unembedding(hidden_NH[rows])
            logprobs_CV = scaled(logits_CV, chunks.temperature).log_softmax(-1)
            tokens_C1 = tokens_N[rows].unsqueeze(-1)
            logprobs.append(logprobs_CV.gather(-1, tokens_C1).squeeze(-1))
            if is_trained and not chunks.with_entropies:
                continue
            weights_CV = logprobs_CV.exp()
            if chunks.with_entropies:
                entropies.append(-(weights_CV * logprobs_CV).sum(-1))
            if not is_trained:
                gradients.append(_gradient(weights_CV, tokens_C1, weight_VH.to(logits_CV.dtype), chunks))
        ctx.kept = chunks, is_trained, logits_CV.dtype  # type: ignore[attr-defined]
        if is_trained:
            ctx.save_for_backward(hidden_NH, weight_VH, tokens_N)
        else:
            ctx.save_for_backward(torch.cat(gradients).to(hidden_NH.dtype))
        found_N = torch.cat(logprobs)
        entropies_N = torch.cat(entropies) if entropies else torch.zeros_like(found_N)
        ctx.mark_non_differentiable(entropies_N)
        return found_N, entropies_N

    @staticmethod
    @once_differentiable  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
    def backward(
        ctx: FunctionCtx, gradient_N: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None, None]:
        """Return the gradients of hidden states and weights."""
        chunks, is_trained, dtype = ctx.kept  # type: ignore[attr-defined]
        saved = ctx.saved_tensors  # type: ignore[attr-defined]
        if not is_trained:
            [rows_NH] = saved
            return (rows_NH * gradient_N.unsqueeze(-1)).to(rows_NH.dtype), None, None, None, None
        hidden_NH, weight_VH, tokens_N = saved
        computed_VH = weight_VH.to(dtype)
        found_NH = torch.empty_like(hidden_NH)
        found_VH = torch.zeros_like(weight_VH, dtype=at_least_float32(weight_VH[:0]).dtype)
        for rows in chunks.of(hidden_NH.shape[0]):
            hidden_CH = hidden_NH[rows].to(dtype)
            logits_CV = scaled(product(hidden_CH, computed_VH), chunks.temperature)
            weights_CV = logits_CV.log_softmax(-1).exp_()
            of_rows_C1 = gradient_N[rows].unsqueeze(-1)
            weights_CV.mul_(-of_rows_C1).scatter_add_(-1, tokens_N[rows].unsqueeze(-1), of_rows_C1)
            if chunks.temperature not in (0.0, 1.0):
                weights_CV.div_(chunks.temperature)
            weights_CV = weights_CV.to(dtype)
            found_NH[rows] = product(weights_CV, computed_VH.t()).to(hidden_NH.dtype)
            if found_VH.dtype == hidden_CH.dtype:
                found_VH.addmm_(weights_CV.t(), hidden_CH)
            else:
                found_VH += weights_CV.t() @ hidden_CH
        return found_NH, found_VH.to(weight_VH.dtype), None, None, None


def _gradient(weights_CV: Tensor, tokens_C1: Tensor, weight_VH: Tensor, chunks: _Chunks) -> Tensor:
    """Return (W_y − Σ_v p_v W_v) ÷ temperature of each row, [C, H]; overwrites p."""
    weights_CV.neg_().scatter_add_(-1, tokens_C1, torch.ones_like(tokens_C1, dtype=weights_CV.dtype))
    found_CH = product(weights_CV.to(weight_VH.dtype), weight_VH.t())
    return found_CH if chunks.temperature in (0.0, 1.0) else found_CH / chunks.temperature
