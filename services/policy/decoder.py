"""The running batch: a prefill adds samples, and each step gives every running sample its next token.

Sits between the engine, which decides which samples run, and the model's own forward pass. Synchronous; used
by one thread. Works with any causal language model; knows nothing about requests or deadlines.

Shapes: B running samples, P tokens of the longest prompt, U distinct prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fairlead.nn.loading import vocabulary_size
from fairlead.types import WeightVersion
from services.policy.block_layer import num_bytes
from services.policy.last_logits import LastLogits
from services.policy.sample_state import SampleState
from services.policy.sampler import SamplingPlan, draw, uniforms
from services.policy.slot_cache import SlotCache

_PREFILL_TOKENS = 8_192
"""Limit on the prompt tokens of one forward pass, padding included; bounds its memory."""


@dataclass(slots=True)
class _Batch:
    """Tensors of the rows that a step needs; rebuilt when rows are added or removed."""

    starts_B1: Tensor
    left: int
    plan: SamplingPlan
    keys_B: npt.NDArray[np.uint64]
    positions_B: npt.NDArray[np.uint64]
    tokens_B: Tensor


class Decoder:
    """Implements `RunningBatch`: the model, its cache, and the running samples."""

    keeps_addresses = False

    def __init__(self, model: PreTrainedModel, *, slots: int) -> None:
        self._device = model.device
        self._cache = SlotCache(slots)
        self._batch: _Batch | None = None
        self._columns = torch.arange(0, device=self._device)
        self._vocabulary_size = vocabulary_size(model)
        self._last_logits = LastLogits(model)
        self.slots = slots
        self.running: list[SampleState] = []
        """Running samples in the order of their rows."""

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values of the running samples."""
        return num_bytes(self._cache.layers)

    @torch.inference_mode()
    def add(self, samples: Sequence[SampleState], version: WeightVersion) -> Sequence[SampleState]:
        """Prefill the prompts of new samples and sample the first token of each; return the samples.

        Raises:
            ValueError: if there are more samples than free slots.
        """
        if len(self.running) + len(samples) > self.slots:
            raise ValueError(f"{len(samples)} samples for {self.slots - len(self.running)} slots")
        if self.slots == 1:
            # A sample that is decoded by itself always starts at the same column of a new block, regardless
            # of earlier samples, so that its numbers are equal bit for bit.
            self._cache = SlotCache(1)
        for group in prefill_groups(samples):
            self._prefill(group, version)
        return samples

    @torch.inference_mode()
    def step(self, version: WeightVersion) -> Sequence[SampleState]:
        """Sample the next token of every running sample; return the samples."""
        if self._batch is None:
            self._batch = self._make_batch()
        batch = self._batch
        moved = self._cache.reserve(left=batch.left, before=0, after=1)
        if moved:
            self._shift(moved)
            self._batch = batch = self._make_batch()
        head, left = self._cache.head, batch.left
        padded = any(sample.start != left for sample in self.running)
        self._cache.open_step(rows=len(self.running), left=left)
        logits_BV = self._last_logits(
            self._cache,
            batch.tokens_B.unsqueeze(1),
            mask_BL=(self._columns_to(head + 1)[left:] >= batch.starts_B1).long() if padded else None,
            positions_BT=head - batch.starts_B1,
        )
        batch.positions_B += np.uint64(1)
        batch.tokens_B = self._draw(
            logits_BV, batch.plan, batch.keys_B, batch.positions_B, self.running, version
        )
        return tuple(self.running)

    def remove(self, samples: Sequence[SampleState]) -> None:
        """Free the slots of some samples; the last rows move into the gaps."""
        if not samples:
            return
        removed = set(map(id, samples))
        kept = [row for row, sample in enumerate(self.running) if id(sample) not in removed]
        sources = [row for row in kept if row >= len(kept)]
        targets = sorted(set(range(len(kept))).difference(kept))
        if sources:
            left = min(self.running[row].start for row in sources)
            with torch.inference_mode():
                self._cache.copy_rows(sources, targets, left=left)
        for source, target in zip(sources, targets, strict=True):
            self.running[target] = self.running[source]
        del self.running[len(kept) :]
        self._batch = None

    def reset(self) -> None:
        """Drop all samples and the cache, after a forward pass that failed."""
        self.running.clear()
        self._batch = None
        self._cache = SlotCache(self.slots)

    def zero_nonfinite(self) -> None:
        """Zero NaN and infinity left in the cache by weights that produced non-finite values."""
        with torch.inference_mode():
            self._cache.zero_nonfinite()

    def _prefill(self, group: Sequence[SampleState], version: WeightVersion) -> None:
        prompts = list(dict.fromkeys(sample.prompt for sample in group))
        row_of = {prompt: row for row, prompt in enumerate(prompts)}
        # Each distinct prompt is computed once; the rows of its other samples are copies.
        group = sorted(group, key=lambda sample: row_of[sample.prompt])
        longest = max(map(len, prompts))
        left = min((sample.start for sample in self.running), default=self._cache.head)
        self._shift(self._cache.reserve(left=left, before=longest, after=1))
        first = len(self.running)
        self._cache.open_prefill(first_row=first, end_row=first + len(prompts), length=longest)
        padding = [longest - len(prompt) for prompt in prompts]
        tokens_UP = torch.tensor(
            [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)],
            device=self._device,
        )
        positions_UP = self._columns_to(longest) - torch.tensor(padding, device=self._device).unsqueeze(1)
        logits_UV = self._last_logits(
            self._cache,
            tokens_UP,
            mask_BL=(positions_UP >= 0).long() if any(padding) else None,
            positions_BT=positions_UP.clamp(min=0),
        )
        self._spread_rows(first, group, [row_of[sample.prompt] for sample in group])
        for sample in group:
            sample.start = self._cache.head - len(sample.prompt)
        self.running.extend(group)
        self._batch = None
        rows = torch.tensor([row_of[sample.prompt] for sample in group], device=self._device)
        self._draw(logits_UV[rows], self._plan(group), _keys(group), _positions(group), group, version)

    def _spread_rows(self, first: int, group: Sequence[SampleState], prompt_rows: Sequence[int]) -> None:
        """Copy the rows of U distinct prompts to the rows of all samples."""
        left = self._cache.head - max(len(sample.prompt) for sample in group)
        copied = [(first + row, first + index) for index, row in enumerate(prompt_rows) if row != index]
        self._cache.copy_rows([row for row, _ in copied], [row for _, row in copied], left=left)

    def _draw(
        self,
        logits_BV: Tensor,
        plan: SamplingPlan,
        keys_B: npt.NDArray[np.uint64],
        positions_B: npt.NDArray[np.uint64],
        samples: Sequence[SampleState],
        version: WeightVersion,
    ) -> Tensor:
        uniforms_B = torch.from_numpy(uniforms(keys_B, positions_B)).to(self._device)
        tokens_B, logprobs_B = draw(logits_BV, plan, uniforms_B)
        # One transfer for both; float64 represents every id exactly.
        tokens, logprobs = torch.stack([tokens_B.double(), logprobs_B.double()]).tolist()
        for sample, token, logprob in zip(samples, tokens, logprobs, strict=True):
            sample.accept(int(token), logprob, version)
        return tokens_B

    def _make_batch(self) -> _Batch:
        starts = [sample.start for sample in self.running]
        return _Batch(
            starts_B1=torch.tensor(starts, device=self._device).unsqueeze(1),
            left=min(starts),
            plan=self._plan(self.running),
            keys_B=_keys(self.running),
            positions_B=_positions(self.running) - np.uint64(1),
            tokens_B=torch.tensor([sample.token_ids[-1] for sample in self.running], device=self._device),
        )

    def _plan(self, samples: Sequence[SampleState]) -> SamplingPlan:
        return SamplingPlan.of(
            [sample.sampling for sample in samples],
            vocabulary_size=self._vocabulary_size,
            device=self._device,
        )

    def _shift(self, columns: int) -> None:
        for sample in self.running:
            sample.start += columns

    def _columns_to(self, end: int) -> Tensor:
        if len(self._columns) < end:
            self._columns = torch.arange(2 * end, device=self._device)
        return self._columns[:end]


def _keys(samples: Sequence[SampleState]) -> npt.NDArray[np.uint64]:
    return np.array([sample.key for sample in samples], dtype=np.uint64)


def _positions(samples: Sequence[SampleState]) -> npt.NDArray[np.uint64]:
    """Return the index of the next token of each sample."""
    return np.array([len(sample.token_ids) for sample in samples], dtype=np.uint64)


def prefill_groups(samples: Sequence[SampleState]) -> Iterator[list[SampleState]]:
    """Yield groups of prompts of similar length, each within the token budget of a forward pass."""
    group: list[SampleState] = []
    for sample in sorted(samples, key=lambda sample: -len(sample.prompt)):
        if group and len(group[0].prompt) * (len(group) + 1) > _PREFILL_TOKENS:
            yield group
            group = []
        group.append(sample)
    if group:
        yield group
