"""Keys and values of the running samples, one block of memory per layer; implements transformers' Cache.

Rows are slots and columns are positions in time: the newest token of every row is in the same column, so a
row is left-padded up to its start, and masks, sliding windows and positions are those of any left-padded
batch. A decoding step writes one column in place; a prefill writes the columns before the head. Knows nothing
about tokens.

Shapes: S slots, H heads, C columns, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache

from services.policy.block_layer import BlockLayer

_FIRST_COLUMNS = 64


@dataclass(slots=True)
class Window:
    """The part of the block that the next forward pass reads and writes."""

    first_row: int = 0
    """First row."""
    end_row: int = 0
    """One past the last row."""
    left: int = 0
    """First column attended to."""
    write: int = 0
    """First column written."""


class SlotLayer(BlockLayer):  # type: ignore[no-untyped-call]
    """The block of one layer: keys and values [S, H, C, D]."""

    def __init__(self, cache: SlotCache) -> None:
        super().__init__(cache)
        self._cache = cache

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write into the window and return the whole window."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self._cache.window
        end = window.write + key_states.shape[-2]
        keys, values = (block[window.first_row : window.end_row] for block in self.blocks)
        keys[:, :, window.write : end] = key_states
        values[:, :, window.write : end] = value_states
        return keys[:, :, window.left : end], values[:, :, window.left : end]


class SlotCache(Cache):
    """The blocks of all layers, and the head: the column that the next decoding step writes."""

    def __init__(self, slots: int) -> None:
        # A layer is added when the model first writes to it, so the number of layers need not be known.
        factory: Any = lambda: SlotLayer(self)  # noqa: E731
        super().__init__(layer_class_to_replicate=factory)
        self.slots = slots
        self.columns = _FIRST_COLUMNS
        self.window = Window()
        self.head = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns before those written, the same for every layer."""
        return self.window.write - self.window.left

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the number of columns attended to and their offset, the same for every layer."""
        return self.get_seq_length() + query_length, 0

    def open_prefill(self, *, first_row: int, end_row: int, length: int) -> None:
        """Let the next pass write `length` columns before the head and attend to nothing else."""
        self.window = Window(first_row, end_row, self.head - length, self.head - length)

    def open_step(self, *, rows: int, left: int) -> None:
        """Let the next pass write the column at the head for the first rows, and advance the head by one."""
        self.window = Window(0, rows, left, self.head)
        self.head += 1

    def reserve(self, *, left: int, before: int, after: int) -> int:
        """Move or grow the block until there are enough columns on both sides of the head.

        Args:
            left: first column in use; equal to the head if none is in use.
            before: columns needed before the head, including those in use.
            after: columns needed from the head on.

        Returns:
            By how many columns the contents moved to the right (negative: to the left).
        """
        used = self.head - left
        before = max(before, used)
        if self.head >= before and self.head + after <= self.columns:
            return 0
        needed = before + after
        # Twice the columns needed, so that a move is amortised over at least as many steps.
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
        """Copy the columns in use of some rows over those of others."""
        if not sources:
            return
        for layer in self._written():
            for block in layer.blocks:
                used = block[:, :, left : self.head]
                if len(sources) == 1:
                    used[targets[0]] = used[sources[0]]
                else:
                    used[list(targets)] = used[list(sources)]

    def zero_nonfinite(self) -> None:
        """Zero all non-finite values, which would affect other rows even if masked: 0 · NaN is NaN."""
        for layer in self._written():
            for block in layer.blocks:
                block.nan_to_num_(0.0, 0.0, 0.0)

    def _written(self) -> list[SlotLayer]:
        """Return the layers that have a block; layers that share the keys of another layer never have one."""
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
