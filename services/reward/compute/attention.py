"""The attention that transformers calls in place of its own while a batch is computed without padding.

The forward pass runs over one row that holds all tokens of the batch; how its attention is computed is the
work of `segments.py` or `varlen.py`.

Shapes: N rows (tokens of the batch), H heads, D head size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from fairlead.nn import own_attention
from fairlead.nn.reward_model import RewardModel

NAME = "fairlead_unpadded"
"""Name under which the attention is registered with transformers."""


class Work(Protocol):
    """A batch, laid out for one member of the ensemble."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that is accepted; a sliding window as wide has no effect."""
        ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Compute the attention of one layer.

        Args:
            layer: number of the layer.
            query: [1, H, N, D].
            key: [1, key heads, N, D], positions applied.
            value: [1, key heads, N, D].
            scale: factor of the products; None for 1/√D.

        Returns:
            [1, N, H, D].
        """
        ...


class _Current(threading.local):
    """The work of the forward pass that this thread runs."""

    work: Work | None = None


_CURRENT = _Current()


@contextmanager
def computing(work: Work, model: RewardModel) -> Iterator[None]:
    """Let a model use this attention within the block."""
    _CURRENT.work = work
    try:
        with own_attention.used(NAME, model.body.config):
            yield
    finally:
        _CURRENT.work = None


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
    """Attention that transformers calls; raises NotImplementedError for unsupported variants."""
    work = _CURRENT.work
    if work is None or query.shape[0] != 1:
        raise NotImplementedError("attention without padding outside of a batch")
    if sliding_window is not None and sliding_window < work.longest:
        raise NotImplementedError(f"a sliding window of {sliding_window} tokens")
    own_attention.refuse_variants(others)
    layer = module.layer_idx
    assert isinstance(layer, int)
    return work.attend(layer, query, key, value, scaling), None


AttentionInterface.register(NAME, _attention)
