"""Attention of a step over a fixed number of columns, which transformers calls instead of its own.

The mask is computed on the device from the position of each row: transformers would build one from numbers of
the host, which a CUDA graph would repeat forever.

Shapes: R rows, H heads, C columns, D head size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from fairlead.nn import own_attention
from services.policy.static.cache import StepPlace

NAME = "fairlead_static"
"""Name under which the attention is registered with transformers."""


class Masks:
    """The masks of one step, by the width of a sliding window."""

    def __init__(self, place: StepPlace) -> None:
        self._place = place
        self._found: dict[int | None, Tensor] = {}

    def of(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return the mask [R, 1, 1, C] that is added to products: 0 for columns attended to, else −∞.

        Args:
            window: number of columns that attention reaches back, the own one included; None for all.
            dtype: type of the queries.
        """
        if window not in self._found:
            place = self._place
            columns_C = torch.arange(place.columns, device=place.positions_R.device)
            hidden_RC = columns_C > place.positions_R[:, None]
            if window is not None:
                hidden_RC |= columns_C <= place.positions_R[:, None] - window
            mask_RC = torch.zeros(hidden_RC.shape, dtype=dtype, device=hidden_RC.device)
            self._found[window] = mask_RC.masked_fill_(hidden_RC, float("-inf"))[:, None, None]
        return self._found[window]


class _Current(threading.local):
    """The masks of the forward pass that this thread runs."""

    masks: Masks | None = None


_CURRENT = _Current()


@contextmanager
def over(place: StepPlace, config: PreTrainedConfig) -> Iterator[None]:
    """Let a model use this attention within the block."""
    _CURRENT.masks = Masks(place)
    try:
        with own_attention.used(NAME, config):
            yield
    finally:
        _CURRENT.masks = None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention of one token of each row; raises NotImplementedError for unsupported variants.

    Args:
        module: the layer.
        query: [R, H, 1, D].
        key: [R, key heads, C, D].
        value: as `key`.
        attention_mask: unused.
        scaling: factor of the products; None for 1/√D.
        dropout: unused; the model is in evaluation mode.
        sliding_window: columns that the layer reaches back.
        others: arguments of variants.

    Returns:
        [R, 1, H, D].
    """
    masks = _CURRENT.masks
    if masks is None or query.shape[2] != 1:
        raise NotImplementedError("attention of a step outside of one")
    own_attention.refuse_variants(others)
    rows, heads, _, size = query.shape
    groups = key.shape[1]
    # The heads that share keys are like several tokens of one head, so that keys need not be repeated.
    grouped = query.reshape(rows, groups, heads // groups, size)
    found = F.scaled_dot_product_attention(
        grouped, key, value, attn_mask=masks.of(sliding_window, query.dtype), scale=scaling
    )
    return found.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(NAME, _attention)
