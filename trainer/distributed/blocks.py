"""Which part of a divided tensor each rank holds.

FSDP divides by rows. Tensor parallelism divides before it, by rows or by columns, or leaves a tensor whole on
its ranks. A mesh has the ranks of FSDP as its first dimension and those of tensor parallelism as its second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


@dataclass(frozen=True, slots=True)
class Block:
    """The part of a tensor that a rank holds: some rows, and of matrices that tensor parallelism divides the
    other way some columns.
    """

    rows: tuple[int, int]
    """The first one, and the one after the last one."""
    columns: tuple[int, int] | None
    """The same; None: all of them."""
    width: int
    """Entries of a row of the block."""

    @property
    def size(self) -> int:
        """Number of entries."""
        return (self.rows[1] - self.rows[0]) * self.width

    def of(self, whole: Tensor) -> Tensor:
        """Return this part of a whole tensor, as a view."""
        part = whole[slice(*self.rows)]
        return part if self.columns is None else part[:, slice(*self.columns)]


def block_of(tensor: Tensor, rank: int) -> Block:
    """Return the part of a divided tensor that a rank holds."""
    assert isinstance(tensor, DTensor)
    rows, width = tensor.shape[0], math.prod(tensor.shape[1:])
    shares, parts = (*tensor.device_mesh.shape, 1)[:2]  # one dimension: only FSDP
    share, part = divmod(rank, parts)
    placement = tensor.placements[-1]
    if parts == 1 or placement.is_replicate():
        return Block(rows_of(share, rows, ranks=shares), None, width)
    if placement == Shard(1):
        columns = rows_of(part, tensor.shape[1], ranks=parts)
        others = width // tensor.shape[1]
        return Block(rows_of(share, rows, ranks=shares), columns, (columns[1] - columns[0]) * others)
    assert placement == Shard(0)
    first, end = rows_of(part, rows, ranks=parts)
    own = rows_of(share, end - first, ranks=shares)
    return Block((first + own[0], first + own[1]), None, width)


def is_copy(tensor: Tensor, rank: int) -> bool:
    """Return whether a rank below this one holds the same part, as tensor parallelism leaves some whole."""
    if not isinstance(tensor, DTensor) or tensor.device_mesh.ndim == 1:
        return False
    return tensor.placements[1].is_replicate() and rank % tensor.device_mesh.size(1) > 0


def rows_of(rank: int, rows: int, *, ranks: int) -> tuple[int, int]:
    """Return the first row that a rank holds of a divided tensor, and the row after its last one.

    Every rank but the last ones holds ⌈rows/ranks⌉ of them, as `torch.chunk` divides.
    """
    each = -(-rows // ranks)
    return min(rank * each, rows), min((rank + 1) * each, rows)
