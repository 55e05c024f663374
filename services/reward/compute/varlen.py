"""Scores of a batch without padding on a GPU: sequences one after the other in one row.

Linear layers see every real token once and no padding. Attention knows where each sequence begins: in
bfloat16 on a GPU by one call of torch's flash attention for sequences of different lengths, elsewhere over
sequences that are padded for the attention only. Shares no beginnings, unlike `segments.py`, whose many small
calls suit a CPU.

Shapes: N rows (tokens of the batch), H heads, D head size, B sequences, T positions of the longest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

from fairlead.nn.ensemble import RewardEnsemble, combine
from fairlead.nn.linear import ROWS
from fairlead.nn.reward_model import RewardModel
from services.batching.packing import Packing, SharedPacking
from services.reward.compute import attention

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Offsets:
    """Where each sequence is in the row."""

    starts: Tensor
    """First row of each sequence, then the number of rows: int32 [B + 1]."""
    rows_BT: Tensor
    """Row of each position; after the end of a sequence that of its first."""
    real_BT: Tensor
    """True at positions of a sequence."""

    @property
    def longest(self) -> int:
        """Positions of the longest sequence."""
        return self.rows_BT.shape[1]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Offsets:
        """Return the offsets of sequences of these lengths, at least 1 each, in main memory."""
        lengths_B = torch.tensor(lengths)
        ends_B = lengths_B.cumsum(0)
        starts_B = ends_B - lengths_B
        columns_T = torch.arange(int(lengths_B.max()))
        real_BT = columns_T < lengths_B[:, None]
        rows_BT = torch.where(real_BT, starts_B[:, None] + columns_T, starts_B[:, None])
        return cls(torch.cat([starts_B, ends_B[-1:]]).int(), rows_BT, real_BT)

    def to(self, device: torch.device) -> Offsets:
        """Return the same on a device."""
        return Offsets(self.starts.to(device), self.rows_BT.to(device), self.real_BT.to(device))


Kernel = Callable[[Tensor, Tensor, Tensor, Offsets, float | None], Tensor]
"""Computes causal attention within each sequence, from queries [N, H, D], keys and values [N, key
heads, D], and the factor of the products (None for 1/√D). Returns [N, H, D]."""


def flash(query: Tensor, key: Tensor, value: Tensor, offsets: Offsets, scale: float | None) -> Tensor:
    """Implement `Kernel` by torch's own call; needs a GPU and 16-bit floats."""
    from torch.nn.attention import varlen

    attend: Any = varlen.varlen_attn  # its arguments differ between versions of torch
    longest = offsets.longest
    # Older versions share keys among heads without this argument.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(attend).parameters else {}
    found: Tensor = attend(
        query,
        key,
        value,
        offsets.starts,
        offsets.starts,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0),
        **grouped,
    )
    return found


def padded(query: Tensor, key: Tensor, value: Tensor, offsets: Offsets, scale: float | None) -> Tensor:
    """Implement `Kernel` on any device: only the attention is computed over padding, which is on the right,
    where causal attention ignores it.
    """
    repeats = query.shape[1] // key.shape[1]
    parts = (query, *(part.repeat_interleave(repeats, dim=1) for part in (key, value)))
    # [N, H, D] → [B, H, T, D]
    query, key, value = (part[offsets.rows_BT].transpose(1, 2) for part in parts)
    found_BHTD = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    return found_BHTD.transpose(1, 2)[offsets.real_BT]


def kernels_of(model: RewardModel) -> list[Kernel]:
    """Return the kernels for the device and the data type of a model, the fastest first."""
    if model.device.type == "cuda" and model.body.dtype in (torch.bfloat16, torch.float16):
        try:
            from torch.nn.attention import varlen

            known = set(inspect.signature(varlen.varlen_attn).parameters)
        except ImportError:  # torch before 2.10
            known = set()
        if {"scale", "window_size"} <= known:
            return [flash, padded]
    return [padded]


@dataclass(frozen=True, slots=True)
class _Work:
    """Implements `attention.Work`."""

    offsets: Offsets
    kernel: Kernel
    longest: int

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """As `attention.Work.attend`."""
        q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
        return self.kernel(q, k, v, self.offsets, scale)[None]


class VarlenForward:
    """Runs sequences without padding; needs replaceable attention."""

    def __init__(self, reward: RewardEnsemble, *, longest: int, kernel: Kernel) -> None:
        """
        Args:
            reward: the models.
            longest: tokens of the longest sequence that is accepted.
            kernel: their attention.
        """
        self._reward = reward
        self._longest = longest
        self._kernel = kernel
        self.packing: Packing[Ids] = SharedPacking[Ids](lambda _: (None, 0))

    def prepare(self, sequences: Sequence[Ids]) -> Callable[[], Tensor]:
        """As `Forward.prepare`."""
        lengths = [len(sequence) for sequence in sequences]
        flat = [token for sequence in sequences for token in sequence]
        positions = [position for length in lengths for position in range(length)]
        rest = -len(flat) % ROWS
        # Rows after the last sequence are a sequence of their own, whose values are not used.
        offsets = Offsets.of([*lengths, rest] if rest else lengths)
        ids_1N = torch.tensor([flat + [0] * rest])
        positions_1N = torch.tensor([[*positions, *range(rest)]])
        last_rows_B = offsets.starts[1 : len(sequences) + 1].long() - 1

        def run() -> Tensor:
            device = self._reward.device
            there = offsets.to(device)
            inputs = ids_1N.to(device), positions_1N.to(device), last_rows_B.to(device)
            work = _Work(there, self._kernel, self._longest)
            scores_MB = torch.stack([_scores(member, work, *inputs) for member in self._reward.members])
            return combine(scores_MB, rule=self._reward.rule, std_weight=self._reward.std_weight)

        return run

    def close(self) -> None:
        """Do nothing: no memory is kept."""


def _scores(
    model: RewardModel, work: _Work, ids_1N: Tensor, positions_1N: Tensor, last_rows_B: Tensor
) -> Tensor:
    with attention.computing(work, model):
        hidden_NH: Tensor = model.body(input_ids=ids_1N, position_ids=positions_1N, use_cache=False)[0][0]
    found: Tensor = model.head(hidden_NH[last_rows_B])
    return found
