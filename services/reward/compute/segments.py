"""Scores of a batch without padding: the model's own forward pass over one row of segments.

Only attention is replaced (`attention.py`). Linear layers see every real token once and no padding. Attention
runs segment by segment, because a mask over the whole row would be computed in full.

Shapes: N rows (tokens of the batch), H heads, D head size, L tokens of a segment, G segments of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

from fairlead.nn import allocator
from fairlead.nn.linear import ROWS
from fairlead.nn.reward_model import RewardModel
from services.reward.compute import attention
from services.reward.compute.prefix_sharing import CachedPrefix, Keep, KeysValues, Plan, Segment

_GROUPED = 64
"""Segments up to this length run together, padded: another call costs more than the padding."""
_APART_BYTES = 256 << 10
"""Smaller keys and values stay in the heap, where they fill gaps: memory of its own costs a mapping each."""


@dataclass(slots=True)
class Work:
    """A plan, laid out for one member of the ensemble."""

    plan: Plan
    member: int
    longest: int
    """Tokens of the longest sequence that is accepted; a sliding window at least as wide has no effect."""
    squares: list[Segment]
    groups: list[tuple[Tensor, Tensor]]
    """Rows [G, L] of segments that run together, padded on the right, and a mask of the real ones."""
    tails: list[tuple[Segment, Tensor | None]]
    """Segments that follow other tokens, and their masks [L, tokens before + L]."""
    kept: dict[bytes, dict[tuple[int, int], tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """As `attention.Work.attend`."""
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
            keys, values = self._keys_and_values(segment, layer, key, value, repeats)
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
        # [1, H, G, L, D] → [G, H, L, D]. Padding is after every real token, so causal attention ignores it.
        query, key, value = (part[0][:, rows_GL].transpose(0, 1) for part in parts)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        found[0, rows_GL[real_GL]] = out.transpose(1, 2)[real_GL]

    def _keys_and_values(
        self, segment: Segment, layer: int, key: Tensor, value: Tensor, repeats: int
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of the tokens before a segment, then its own."""
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
        """Copy a beginning's keys and values for the cache; they are not available after this layer."""
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        if keep.cached is not None:
            for part, tensor in zip(parts, keep.cached.keys_values[self.member, layer], strict=True):
                part.append(tensor)
        for start, end in keep.rows:
            parts[0].append(key[0, :, start:end])
            parts[1].append(value[0, :, start:end])
        layers = self.kept.setdefault(keep.key, {})
        layers[self.member, layer] = (torch.cat(parts[0], dim=1), torch.cat(parts[1], dim=1))


def layout(plan: Plan, *, member: int, longest: int, dtype: torch.dtype, device: torch.device) -> Work:
    """Build the rows and masks of a plan for one member of an ensemble."""
    free = [segment for segment in plan.segments if not segment.num_before]
    short = sorted((s for s in free if s.end - s.start <= _GROUPED), key=lambda s: s.end - s.start)
    groups = [_rows(group, device) for group in _groups(short)]
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


def scores(model: RewardModel, work: Work) -> Tensor:
    """Return float32 scores [sequences of the plan]; leave beginnings for the cache in `work.kept`."""
    device = model.device
    ids_1N, positions_1N = (
        F.pad(torch.from_numpy(rows), (0, -len(rows) % ROWS))[None].to(device)
        for rows in (work.plan.ids, work.plan.positions)
    )
    with attention.computing(work, model):
        hidden_NH: Tensor = model.body(input_ids=ids_1N, position_ids=positions_1N, use_cache=False)[0][0]
    rows = torch.tensor(work.plan.last_rows, device=device)
    found: Tensor = model.head(hidden_NH[rows])
    return found


def cached(plan: Plan, works: Sequence[Work]) -> Iterator[tuple[CachedPrefix, bool]]:
    """Yield the beginnings that a computed plan adds to the cache, and whether each is a whole prompt."""
    for keep in plan.keeps:
        tensors = {place: pair for work in works for place, pair in work.kept.pop(keep.key, {}).items()}
        yield CachedPrefix(keep.key, keep.length, apart(tensors)), keep.is_prompt


def apart(tensors: KeysValues) -> KeysValues:
    """Copy large keys and values on the CPU out of the heap: they outlive the batch."""
    flat = [tensor for pair in tensors.values() for tensor in pair]
    size = sum(tensor.nbytes for tensor in flat)
    if size < _APART_BYTES or flat[0].device.type != "cpu":
        return tensors
    memory = torch.frombuffer(allocator.long_lived(size), dtype=flat[0].dtype)
    copies = [
        part.view(tensor.shape).copy_(tensor)
        for part, tensor in zip(torch.split(memory, [tensor.numel() for tensor in flat]), flat, strict=True)
    ]
    return dict(zip(tensors, zip(copies[::2], copies[1::2], strict=True), strict=True))


def _groups(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Split short segments, sorted by length, where more than half of the first would be padding."""
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
    """Return the mask of a segment: causal, with everything before it visible; None for a single token."""
    if length == 1:
        return None
    mask = torch.full((length, before + length), float("-inf"), dtype=dtype, device=device)
    return mask.triu_(before + 1)


def _repeated(tensor: Tensor, repeats: int) -> Tensor:
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, dim=1)
