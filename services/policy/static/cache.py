"""Keys and values of the running samples at fixed addresses; implements transformers' Cache.

Rows are slots, and a token is in the column of its position, so nothing moves while samples run. A prefill
writes whole prompts; a step writes one column in each row, at positions that only the device knows. The
blocks grow only when a sample needs more columns than there are.

Shapes: S slots, H heads, C columns, D head size, R rows of a step, U distinct prompts, P tokens of the
longest prompt, N new samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from services.policy.block_layer import BlockLayer


@dataclass(frozen=True, slots=True)
class PrefillPlace:
    """Where a prefill writes."""

    rows_N: Tensor
    """Row of each new sample."""
    prompts_N: Tensor
    """Which of the distinct prompts each sample has."""
    columns_UP: Tensor | None
    """For each column the place of its token in the padded prompt; None without padding."""


@dataclass(frozen=True, slots=True)
class StepPlace:
    """Where a step writes, and what it attends to."""

    rows_R: Tensor
    """Row numbers 0 … R − 1."""
    positions_R: Tensor
    """Column that is written in each row."""
    columns: int
    """Columns attended to, before a mask hides those after the position."""


class StaticLayer(BlockLayer):  # type: ignore[no-untyped-call]
    """The block of one layer: keys and values [S, H, C, D]."""

    def __init__(self, cache: StaticCache) -> None:
        super().__init__(cache)
        self._cache = cache

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values; return those that this pass attends to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self._cache.place
        if isinstance(place, StepPlace):
            for block, new in zip(self.blocks, (key_states, value_states), strict=True):
                block[place.rows_R, :, place.positions_R] = new[:, :, 0]
            rows = len(place.rows_R)
            keys, values = (block[:rows, :, : place.columns] for block in self.blocks)
            return keys, values
        assert place is not None
        for block, new in zip(self.blocks, (key_states, value_states), strict=True):
            block[place.rows_N, :, : new.shape[2]] = _aligned(new, place.columns_UP)[place.prompts_N]
        return key_states, value_states

    def grow(self, columns: int) -> None:
        """Move the contents into blocks of more columns."""
        grown = []
        for block in self.blocks:
            slots, heads, old, size = block.shape
            larger = block.new_zeros(slots, heads, columns, size)
            larger[:, :, :old] = block
            grown.append(larger)
        self.keys, self.values = grown


class StaticCache(Cache):
    """The blocks of all layers."""

    def __init__(self, slots: int, *, columns: int) -> None:
        # A layer is added when the model first writes to it, so the number of layers need not be known.
        factory: Any = lambda: StaticLayer(self)  # noqa: E731
        super().__init__(layer_class_to_replicate=factory)
        self.slots = slots
        self.columns = columns
        self.place: PrefillPlace | StepPlace | None = None
        """What the next forward pass writes; set before each."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns before those written, the same for every layer."""
        return self.place.columns - 1 if isinstance(self.place, StepPlace) else 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the number of columns attended to and their offset, the same for every layer."""
        return self.get_seq_length() + query_length, 0

    def grow(self, columns: int) -> None:
        """Add columns for longer samples. The blocks get new addresses."""
        self.columns = columns
        for layer in self._written():
            layer.grow(columns)

    def copy_rows(self, sources: Tensor, targets: Tensor, *, columns: int) -> None:
        """Copy the first columns of some rows over those of others."""
        for layer in self._written():
            for block in layer.blocks:
                block[targets, :, :columns] = block[sources, :, :columns]

    def zero_nonfinite(self) -> None:
        """Zero all non-finite values, which would affect later samples even if masked: 0 · NaN is NaN."""
        for layer in self._written():
            for block in layer.blocks:
                block.nan_to_num_(0.0, 0.0, 0.0)

    def _written(self) -> Sequence[StaticLayer]:
        """Return the layers that have a block; layers that share the keys of another layer never have one."""
        return [layer for layer in self.layers if isinstance(layer, StaticLayer) and layer.is_initialized]


def _aligned(states_UHPD: Tensor, columns_UP: Tensor | None) -> Tensor:
    """Move the padding of prompts from their left to their right."""
    if columns_UP is None:
        return states_UHPD
    return states_UHPD.gather(2, columns_UP[:, None, :, None].expand_as(states_UHPD))


def left_padding_removed(lengths: Sequence[int], width: int) -> Tensor:
    """Return `PrefillPlace.columns_UP` [U, width] of prompts that are padded on the left to `width`."""
    padding_U1 = torch.tensor([[width - length] for length in lengths])
    return (torch.arange(width) + padding_U1) % width
