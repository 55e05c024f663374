"""Offsets of sequences in one row, and attention within each; test_segments.py compares whole scores."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen

from services.reward.compute.varlen import Offsets, flash, padded

LENGTHS = [5, 1, 9, 3, 9]
HEADS, KEY_HEADS, SIZE = 4, 2, 8


def by_loop(query: Tensor, key: Tensor, value: Tensor, starts: list[int], scale: float | None) -> Tensor:
    """Attend within each sequence on its own, in float64."""
    found = torch.zeros(query.shape, dtype=torch.float64)
    repeats = query.shape[1] // key.shape[1]
    for start, end in itertools.pairwise(starts):
        q, k, v = (part[start:end].double().transpose(0, 1) for part in (query, key, value))
        k, v = (part.repeat_interleave(repeats, 0) for part in (k, v))
        found[start:end] = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(
            0, 1
        )
    return found


def parts() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    rows = sum(LENGTHS)
    return tuple(torch.randn(rows, heads, SIZE, generator=draw) for heads in (HEADS, KEY_HEADS, KEY_HEADS))


def test_offsets_name_the_row_of_every_position() -> None:
    draw = random.Random(0)
    for lengths in ([1], LENGTHS, [draw.randint(1, 40) for _ in range(30)]):
        offsets = Offsets.of(lengths)
        assert offsets.starts.dtype == torch.int32
        assert offsets.starts.tolist() == [sum(lengths[:number]) for number in range(len(lengths) + 1)]
        assert offsets.rows_BT[offsets.real_BT].tolist() == list(range(sum(lengths)))
        assert offsets.real_BT.sum(1).tolist() == lengths
        assert offsets.longest == max(lengths)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_padded_attention_stays_within_each_sequence(scale: float | None) -> None:
    offsets = Offsets.of(LENGTHS)
    expected = by_loop(*parts(), offsets.starts.tolist(), scale)
    assert torch.allclose(padded(*parts(), offsets, scale).double(), expected, atol=1e-6)


@pytest.mark.parametrize("has_groups", [True, False])
def test_flash_attention_is_called_with_the_offsets(
    monkeypatch: pytest.MonkeyPatch, has_groups: bool
) -> None:
    """Torch's own call runs on GPUs only; a loop with its signature takes its place."""

    def stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        assert window_size == (-1, 0)
        assert max_q == max_k == max(LENGTHS)
        assert cu_seq_q.tolist() == cu_seq_k.tolist()
        return by_loop(query, key, value, cu_seq_q.tolist(), scale).to(query.dtype)

    def newer(*given, enable_gqa=False, scale=None, window_size=(-1, -1)):
        assert enable_gqa
        return stand_in(*given, scale=scale, window_size=window_size)

    monkeypatch.setattr(torch_varlen, "varlen_attn", newer if has_groups else stand_in)
    offsets = Offsets.of(LENGTHS)
    found = flash(*parts(), offsets, 0.3)
    assert torch.allclose(found, padded(*parts(), offsets, 0.3), atol=1e-6)
