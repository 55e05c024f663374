"""Results of all ranks brought together: sums of figures, flat tensors, and whole tensors at one rank.

Every rank calls these in the same order. With one rank each returns what it got. With tensor parallelism the
figures of a share of the sequences, which several ranks compute, count once.
Shapes: N response tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.distributed.blocks import block_of
from trainer.distributed.group import Group
from trainer.distributed.sharding import is_divided, local


def summed(figures: Mapping[str, float], group: Group) -> dict[str, float]:
    """Return the sum of each figure over all ranks, which have the same names in the same order."""
    if group.size == 1 or not figures:
        return dict(figures)
    values = torch.tensor(list(figures.values()), dtype=torch.float64) * group.counts
    dist.all_reduce(values)
    return dict(zip(figures, values.tolist(), strict=True))


def combined(flat_N: Tensor, group: Group) -> Tensor:
    """Return a flat tensor each of whose entries one rank has computed; it is 0 on the others."""
    if group.size > 1:
        dist.all_reduce(flat_N if group.counts else flat_N.zero_())
    return flat_N


def concatenated(part_N: Tensor, group: Group) -> Tensor:
    """Return the flat tensors of all ranks, of any length each, one after the other."""
    if group.size == 1:
        return part_N
    part_N = part_N if group.counts else part_N[:0]
    lengths = torch.zeros(group.size, dtype=torch.long)
    lengths[group.rank] = len(part_N)
    dist.all_reduce(lengths)
    starts = lengths.cumsum(0) - lengths
    whole_N = part_N.new_zeros(int(lengths.sum()))
    start = int(starts[group.rank])
    whole_N[start : start + len(part_N)] = part_N
    dist.all_reduce(whole_N)
    return whole_N


def smallest(number: int, group: Group) -> int:
    """Return the smallest number that any rank has."""
    if group.size == 1:
        return number
    value = torch.tensor(number)
    dist.all_reduce(value, dist.ReduceOp.MIN)
    return int(value)


def whole_at(tensor: Tensor, owner: int, group: Group, *, dtype: torch.dtype | None = None) -> Tensor | None:
    """Return a whole tensor on one rank, None on the others; only that rank needs memory for it.

    Args:
        tensor: divided among the ranks, or the same on all of them.
        owner: the rank that gets it.
        group: the ranks.
        dtype: type that it is converted to before it is sent; None: its own.
    """
    if not is_divided(tensor):
        return tensor.detach().to(dtype or tensor.dtype) if group.rank == owner else None
    if group.tensor_parallel > 1:
        return _assembled_at(tensor, owner, group, dtype=dtype or tensor.dtype)
    each = -(-tensor.shape[0] // group.size)
    part = local(tensor).detach().to(dtype or tensor.dtype).contiguous()
    if len(part) < each:
        part = torch.cat([part, part.new_zeros(each - len(part), *part.shape[1:])])
    if group.rank != owner:
        dist.gather(part, dst=owner)
        return None
    whole = part.new_empty(each * group.size, *part.shape[1:])
    dist.gather(part, list(torch.chunk(whole, group.size)), dst=owner)
    return whole[: tensor.shape[0]]


def _assembled_at(tensor: Tensor, owner: int, group: Group, *, dtype: torch.dtype) -> Tensor | None:
    """Return on one rank a tensor of which each rank holds a block."""
    blocks = [block_of(tensor, rank) for rank in range(group.size)]
    row = local(tensor).detach().to(dtype).flatten()
    most = max(block.size for block in blocks)
    row = torch.cat([row, row.new_zeros(most - len(row))])
    if group.rank != owner:
        dist.gather(row, dst=owner)
        return None
    rows = [torch.empty_like(row) for _ in blocks]
    dist.gather(row, rows, dst=owner)
    whole = row.new_empty(tensor.shape)
    for block, found in zip(blocks, rows, strict=True):
        target = block.of(whole)
        target.copy_(found[: block.size].view(target.shape))
    return whole


def everywhere(tensor: Tensor, group: Group) -> Tensor:
    """Return a whole tensor on every rank."""
    found = [whole_at(tensor, rank, group) for rank in range(group.size)]
    return next(one for one in found if one is not None)


def whole_on_cpu(tensors: Mapping[str, Tensor], group: Group) -> dict[str, Tensor]:
    """Return whole tensors in the memory of rank 0; on the other ranks nothing."""
    found = {}
    for name, tensor in tensors.items():
        group.progress(f"gathering {name}")
        whole = whole_at(tensor, 0, group)
        if whole is not None:
            found[name] = whole.cpu()
    return found


def largest(number: int, group: Group) -> int:
    """Return the largest number that any rank has."""
    return -smallest(-number, group)
