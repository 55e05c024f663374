"""Keys and values of the samples being decoded, one block of memory per layer, behind transformers' Cache.

Rows are slots, columns are time: the newest token of every row stands in the same column, so a row is
left-padded by where it starts, and masks, sliding windows and positions are what every architecture knows
from padded batches. A decoding step writes one column in place; a prefill writes the columns before the head.
Knows no tokens.

Shapes: S slots, H heads, C columns, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

_FIRST_COLUMNS = 64


@dataclass(slots=True)
class Window:
    """The part of the block that the next forward pass sees."""

    first_row: int = 0
    """First row."""
    end_row: int = 0
    """Row behind the last."""
    left: int = 0
    """First column that is attended to."""
    write: int = 0
    """First column that is written."""


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's block: keys and values [S, H, C, D]."""

    is_sliding = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes the block: zeros, as masked columns are still multiplied by 0."""

        def block(states: Tensor) -> Tensor:
            _, heads, _, size = states.shape
            return states.new_zeros(self._cache.slots, heads, self._cache.columns, size)

        self.keys, self.values = block(key_states), block(value_states)
        self.is_initialized = True

    @property
    def blocks(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Writes into the window and returns all of it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self._cache.window
        end = window.write + key_states.shape[-2]
        keys, values = (block[window.first_row : window.end_row] for block in self.blocks)
        keys[:, :, window.write : end] = key_states
        values[:, :, window.write : end] = value_states
        return keys[:, :, window.left : end], values[:, :, window.left : end]

    def get_seq_length(self) -> int:
        """Columns before those that are written."""
        return self._cache.window.write - self._cache.window.left

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns attended to, and their offset."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit: the block grows."""
        return -1


class SlotCache(Cache):
    """Every layer's block, and the head: the column that the next decoding step writes."""

    def __init__(self, slots: int) -> None:
        # A layer joins when the model first writes to it, so no model's number of layers need be known.
        factory: Any = lambda: SlotLayer(self)  # noqa: E731
        super().__init__(layer_class_to_replicate=factory)
        self.slots = slots
        self.columns = _FIRST_COLUMNS
        self.window = Window()
        self.head = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns before those that are written, the same for every layer."""
        return self.window.write - self.window.left

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Columns attended to, and their offset, the same for every layer."""
        return self.get_seq_length() + query_length, 0

    def open_prefill(self, *, first_row: int, end_row: int, length: int) -> None:
        """The next pass writes `length` columns before the head, seeing nothing else."""
        self.window = Window(first_row, end_row, self.head - length, self.head - length)

    def open_step(self, *, rows: int, left: int) -> None:
        """The next pass writes the column at the head of the first rows, which then moves on by one."""
        self.window = Window(0, rows, left, self.head)
        self.head += 1

    def make_room(self, *, left: int, before: int, after: int) -> int:
        """Moves or grows the block until there are enough columns on both sides of the head.

        Args:
            left: first column in use; equal to the head if none is.
            before: columns needed before the head, those in use included.
            after: columns needed from the head on.

        Returns:
            By how many columns everything in use moved to the right (negative: to the left).
        """
        used = self.head - left
        before = max(before, used)
        if self.head >= before and self.head + after <= self.columns:
            return 0
        needed = before + after
        # Twice what is needed: a move is then paid for by at least as many steps.
        columns = self.columns if self.columns >= 2 * needed else 2 * needed
        target = before - used
        for layer in self._written():
            layer.keys, layer.values = (
                _moved(block, slice(left, self.head), target, columns) for block in layer.blocks
            )
        self.columns = columns
        self.head = before
        return target - left

    def copy_rows(self, sources: Sequence[int], targets: Sequence[int], *, left: int) -> None:
        """Copies the columns in use of some rows over those of others."""
        if not sources:
            return
        for layer in self._written():
            for block in layer.blocks:
                used = block[:, :, left : self.head]
                if len(sources) == 1:
                    used[targets[0]] = used[sources[0]]
                else:
                    used[list(targets)] = used[list(sources)]

    def scrub(self) -> None:
        """Zeros whatever is not finite, which would otherwise outlive its row: 0 · NaN is NaN."""
        for layer in self._written():
            for block in layer.blocks:
                block.nan_to_num_(0.0, 0.0, 0.0)

    def _written(self) -> list[SlotLayer]:
        """Layers that have a block; those that share another's keys never do."""
        return [layer for layer in self.layers if isinstance(layer, SlotLayer) and layer.is_initialized]


def _moved(block_SHCD: Tensor, used: slice, target: int, columns: int) -> Tensor:
    slots, heads, old_columns, size = block_SHCD.shape
    end = target + used.stop - used.start
    if columns == old_columns:
        block_SHCD[:, :, target:end] = block_SHCD[:, :, used].clone()
        return block_SHCD
    grown_SHCD = block_SHCD.new_zeros(slots, heads, columns, size)
    grown_SHCD[:, :, target:end] = block_SHCD[:, :, used]
    return grown_SHCD
