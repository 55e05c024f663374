"""Scores of a batch in which nothing is padded: the model's own forward pass over one row of segments.

Only attention is ours: transformers calls it in place of its own. Linear layers see every real token once and
no padding; attention runs segment by segment, as a mask over all of them would be computed in full.

Shapes: N rows (tokens of the batch), H heads, D head size, L tokens of a segment, G segments of a group.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor, nn
from transformers import AttentionInterface

from fairlead.nn.linear import ROWS
from fairlead.nn.reward_model import RewardModel
from services.reward.compute.prefix_sharing import CachedPrefix, Keep, Plan, Segment

NAME = "fairlead_segments"
"""What transformers knows our attention by."""
_GROUPED = 64
"""Segments up to this length run several at a time, padded: a call costs more than their padding does."""
_UNKNOWN = ("softcap", "s_aux", "position_bias", "sinks", "indexer")
"""Variants of attention that are not ours."""


@dataclass(slots=True)
class Work:
    """A plan on its way through one member."""

    plan: Plan
    member: int
    longest: int
    """Longest sequence ever, in tokens: a window at least as wide hides nothing."""
    squares: list[Segment]
    groups: list[tuple[Tensor, Tensor]]
    """Rows [G, L] of segments run together, right-padded, and which of them are real."""
    tails: list[tuple[Segment, Tensor | None]]
    """Segments that follow others, and their masks [L, before + L]."""
    kept: dict[bytes, dict[tuple[int, int], tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attention of one layer.

        Args:
            layer: its number.
            query: [1, H, N, D].
            key: [1, key heads, N, D], positions applied.
            value: [1, key heads, N, D].
            scale: of the products; None is 1/√D.

        Returns:
            [1, N, H, D].
        """
        for keep in self.plan.keeps:
            self._keep(keep, layer, key, value)
        repeats = query.shape[1] // key.shape[1]
        key, value = _repeated(key, repeats), _repeated(value, repeats)
        found = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])
        for rows_GL, real_GL in self.groups:
            self._group(rows_GL, real_GL, (query, key, value), scale, found)
        for segment in self.squares:
            rows = slice(segment.start, segment.end)
            out = F.scaled_dot_product_attention(
                query[:, :, rows], key[:, :, rows], value[:, :, rows], is_causal=True, scale=scale
            )
            found[:, rows] = out.transpose(1, 2)
        for segment, mask in self.tails:
            keys, values = self._led_to(segment, layer, key, value, repeats)
            rows = slice(segment.start, segment.end)
            out = F.scaled_dot_product_attention(query[:, :, rows], keys, values, attn_mask=mask, scale=scale)
            found[:, rows] = out.transpose(1, 2)
        return found

    def _group(
        self,
        rows_GL: Tensor,
        real_GL: Tensor,
        parts: tuple[Tensor, Tensor, Tensor],
        scale: float | None,
        found: Tensor,
    ) -> None:
        # [1, H, G, L, D] → [G, H, L, D]; what pads is behind every real token, which sees nothing of it.
        query, key, value = (part[0][:, rows_GL].transpose(0, 1) for part in parts)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        found[0, rows_GL[real_GL]] = out.transpose(1, 2)[real_GL]

    def _led_to(
        self, segment: Segment, layer: int, key: Tensor, value: Tensor, repeats: int
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of what a segment follows and of itself."""
        keys: list[Tensor] = []
        values: list[Tensor] = []
        if segment.cached is not None:
            cached_key, cached_value = segment.cached.keys_values[self.member, layer]
            keys.append(_repeated(cached_key[None], repeats))
            values.append(_repeated(cached_value[None], repeats))
        for start, end in (*segment.before, (segment.start, segment.end)):
            keys.append(key[:, :, start:end])
            values.append(value[:, :, start:end])
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def _keep(self, keep: Keep, layer: int, key: Tensor, value: Tensor) -> None:
        """Copies a beginning out of the batch, which is gone after this layer."""
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        if keep.cached is not None:
            for part, tensor in zip(parts, keep.cached.keys_values[self.member, layer], strict=True):
                part.append(tensor)
        for start, end in keep.rows:
            parts[0].append(key[0, :, start:end])
            parts[1].append(value[0, :, start:end])
        layers = self.kept.setdefault(keep.key, {})
        layers[self.member, layer] = (torch.cat(parts[0], dim=1), torch.cat(parts[1], dim=1))


class _Current(threading.local):
    """What the model of this thread computes."""

    work: Work | None = None


_CURRENT = _Current()


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
    """What transformers calls; refuses variants that it does not know."""
    work = _CURRENT.work
    if work is None or query.shape[0] != 1:
        raise NotImplementedError("attention over segments outside a plan")
    if sliding_window is not None and sliding_window < work.longest:
        raise NotImplementedError(f"a sliding window of {sliding_window} tokens")
    odd = [name for name in _UNKNOWN if others.get(name) is not None]
    if odd:
        raise NotImplementedError(f"attention with {', '.join(odd)}")
    layer = module.layer_idx
    assert isinstance(layer, int)
    return work.attend(layer, query, key, value, scaling), None


AttentionInterface.register(NAME, _attention)


def layout(plan: Plan, *, member: int, longest: int, dtype: torch.dtype, device: torch.device) -> Work:
    """Builds the rows and masks of a plan for one member of an ensemble."""
    free = [segment for segment in plan.segments if not segment.num_before]
    short = sorted((s for s in free if s.end - s.start <= _GROUPED), key=lambda s: s.end - s.start)
    groups = [_rows(group, device) for group in _like(short)]
    masks: dict[tuple[int, int], Tensor | None] = {}
    tails: list[tuple[Segment, Tensor | None]] = []
    for segment in plan.segments:
        if segment.num_before:
            size = (segment.end - segment.start, segment.num_before)
            if size not in masks:
                masks[size] = _mask(*size, dtype=dtype, device=device)
            tails.append((segment, masks[size]))
    squares = [segment for segment in free if segment.end - segment.start > _GROUPED]
    return Work(plan, member, longest, squares, groups, tails)


@contextmanager
def _computing(work: Work, model: RewardModel) -> Iterator[None]:
    config = model.body.config
    before, config._attn_implementation = config._attn_implementation, NAME
    _CURRENT.work = work
    try:
        yield
    finally:
        _CURRENT.work = None
        config._attn_implementation = before


def scores(model: RewardModel, work: Work) -> Tensor:
    """float32 [sequences of the plan]; what is kept of it is in `work.kept` afterwards."""
    device = model.device
    ids_1N, positions_1N = (
        F.pad(torch.from_numpy(rows), (0, -len(rows) % ROWS))[None].to(device)
        for rows in (work.plan.ids, work.plan.positions)
    )
    with _computing(work, model):
        hidden_NH: Tensor = model.body(input_ids=ids_1N, position_ids=positions_1N, use_cache=False)[0][0]
    rows = torch.tensor(work.plan.last_rows, device=device)
    found: Tensor = model.head(hidden_NH[rows])
    return found


def cached(plan: Plan, works: Sequence[Work]) -> Iterator[tuple[CachedPrefix, bool]]:
    """What a computed plan leaves for the cache, and whether it is a whole prompt."""
    for keep in plan.keeps:
        tensors = {place: pair for work in works for place, pair in work.kept.get(keep.key, {}).items()}
        yield CachedPrefix(keep.key, keep.length, tensors), keep.is_prompt


def _like(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Cuts short segments, sorted by length, where more than half of the first would be padding."""
    group: list[Segment] = []
    for segment in segments:
        if group and segment.end - segment.start > 2 * (group[0].end - group[0].start):
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _rows(group: Sequence[Segment], device: torch.device) -> tuple[Tensor, Tensor]:
    starts_G = torch.tensor([segment.start for segment in group])
    lengths_G = torch.tensor([segment.end - segment.start for segment in group])
    columns_L = torch.arange(int(lengths_G.max()))
    real_GL = columns_L < lengths_G[:, None]
    rows_GL = torch.where(real_GL, starts_G[:, None] + columns_L, starts_G[:, None])
    return rows_GL.to(device), real_GL.to(device)


def _mask(length: int, before: int, *, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Every token sees what it follows; a single one sees all there is."""
    if length == 1:
        return None
    mask = torch.full((length, before + length), float("-inf"), dtype=dtype, device=device)
    return mask.triu_(before + 1)


def _repeated(tensor: Tensor, repeats: int) -> Tensor:
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, dim=1)
