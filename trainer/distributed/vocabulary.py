"""Log-probs of a vocabulary that is divided among ranks: no rank has all logits of a token.

Each rank computes the logits of its part of the vocabulary; three numbers of each token are summed over
ranks.

Shapes: N tokens, v this rank's part of the vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from fairlead.nn.logprobs import OfLogits, logprobs_and_entropies, scaled
from trainer.distributed.blocks import rows_of


def is_divided(unembedding: nn.Module) -> bool:
    """Return whether an output layer computes only this rank's part of the logits."""
    return isinstance(next(nn.Module.parameters(unembedding)), DTensor)


def of_logits(unembedding: nn.Module) -> OfLogits:
    """Return what computes log-probs and entropies from the output of an output layer, whole or divided."""
    weight = next(nn.Module.parameters(unembedding))
    if not isinstance(weight, DTensor):
        return logprobs_and_entropies
    mesh = weight.device_mesh
    first, _ = rows_of(mesh.get_local_rank(), weight.shape[0], ranks=mesh.size())
    return partial(_divided, first=first, ranks=mesh.get_group())


def _divided(
    logits_Nv: Tensor, tokens_N: Tensor, temperature: float, *, first: int, ranks: ProcessGroup
) -> tuple[Tensor, Tensor]:
    logits_Nv = scaled(logits_Nv, temperature)
    if not logits_Nv.shape[-1]:
        # A small vocabulary leaves no token for the last ranks: one of probability 0, which has a maximum.
        logits_Nv = nn.functional.pad(logits_Nv, (0, 1), value=torch.finfo(logits_Nv.dtype).min / 2)
    found: tuple[Tensor, Tensor] = _Logprobs.apply(  # type: ignore[no-untyped-call]
        logits_Nv, tokens_N - first, ranks
    )
    return found


class _Logprobs(torch.autograd.Function):
    """log-softmax at a token, over logits that are divided among ranks; and the entropy, without gradient."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits_Nv: Tensor, tokens_N: Tensor, ranks: ProcessGroup
    ) -> tuple[Tensor, Tensor]:
        """Return both [N]; `tokens_N` counts from the first token of this rank's part."""
        width = logits_Nv.shape[-1]
        largest_N = logits_Nv.amax(-1)
        dist.all_reduce(largest_N, dist.ReduceOp.MAX, group=ranks)
        shifted_Nv = logits_Nv - largest_N.unsqueeze(-1)
        weights_Nv = shifted_Nv.exp()
        is_own_N = (tokens_N >= 0) & (tokens_N < width)
        own_N = tokens_N.clamp(0, width - 1)
        at_token_N = shifted_Nv.gather(-1, own_N.unsqueeze(-1)).squeeze(-1)
        sums_3N = torch.stack(
            [
                weights_Nv.sum(-1),
                torch.where(is_own_N, at_token_N, 0),
                (weights_Nv * shifted_Nv).sum(-1),
            ]
        )
        dist.all_reduce(sums_3N, group=ranks)
        total_N, at_token_N, weighted_N = sums_3N
        ctx.save_for_backward(weights_Nv.div_(total_N.unsqueeze(-1)), own_N, is_own_N)
        entropies_N = total_N.log() - weighted_N / total_N
        ctx.mark_non_differentiable(entropies_N)
        return at_token_N - total_N.log(), entropies_N

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient_N: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        """Return gradient · (1[token] − p), of this rank's part."""
        probabilities_Nv, own_N, is_own_N = ctx.saved_tensors  # type: ignore[attr-defined]
        found_Nv = -probabilities_Nv * gradient_N.unsqueeze(-1)
        found_Nv.scatter_add_(-1, own_N.unsqueeze(-1), (gradient_N * is_own_N).unsqueeze(-1))
        return found_Nv, None, None
