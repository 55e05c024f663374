"""One layer of a cache of keys and values that keeps a block of memory for all slots; shared by both caches.

Shapes: S slots, H heads, C columns, D head size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin


class BlockCache(Protocol):
    """What a layer asks of its cache."""

    slots: int
    columns: int

    def get_seq_length(self) -> int:
        """Return the number of columns before those written."""
        ...


class BlockLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The block of one layer: keys and values [S, H, C, D]. A subclass decides where `update` writes."""

    is_sliding = False

    def __init__(self, cache: BlockCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._block_cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the block with zeros, because masked columns are still multiplied by 0."""

        def block(states: Tensor) -> Tensor:
            _, heads, _, size = states.shape
            return states.new_zeros(self._block_cache.slots, heads, self._block_cache.columns, size)

        self.keys, self.values = block(key_states), block(value_states)
        self.is_initialized = True

    @property
    def blocks(self) -> tuple[Tensor, Tensor]:
        """The keys and the values of the layer."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    @property
    def num_bytes(self) -> int:
        """Memory of the block; 0 before the first write."""
        return sum(block.nbytes for block in self.blocks) if self.is_initialized else 0

    def get_seq_length(self) -> int:
        """Return the number of columns before those written."""
        return self._block_cache.get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns attended to and their offset."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return -1 for no limit, because the block grows."""
        return -1


def num_bytes(layers: Iterable[object]) -> int:
    """Return the memory of all blocks among the layers of a cache."""
    return sum(layer.num_bytes for layer in layers if isinstance(layer, BlockLayer))
