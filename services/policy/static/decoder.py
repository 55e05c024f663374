"""The running batch with tensors of fixed shape; implements `RunningBatch`.

A step never waits for the device; a prefill may. A step is started before the tokens of the one before are
read, so that the device always has work. A sample that ends by a stop token therefore takes part in one step
more, whose token is dropped.

Shapes: S slots, R rows of a step, N new samples, U distinct prompts, P tokens of the longest prompt,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fairlead.nn.loading import vocabulary_size
from fairlead.types import WeightVersion
from services.policy.block_layer import num_bytes
from services.policy.decoder import prefill_groups
from services.policy.last_logits import LastLogits
from services.policy.sample_state import SampleState
from services.policy.static import attention
from services.policy.static.cache import PrefillPlace, StaticCache, StepPlace, left_padding_removed
from services.policy.static.graphs import CudaRecorder, Graphs, Record, StepShape
from services.policy.static.rows import Rows, cuts, to_device

_FIRST_COLUMNS = 128


@dataclass(frozen=True, slots=True)
class _Started:
    """Tokens that the device computes: of a step, or the first ones of new samples."""

    samples: tuple[SampleState, ...]
    version: WeightVersion
    sampled_N2: Tensor
    """Token and log-prob of each sample, in main memory."""
    finished: torch.cuda.Event | None
    """Occurs when `sampled_N2` is complete; None on a CPU."""


class StaticDecoder:
    """Implements `RunningBatch`."""

    keeps_addresses = True

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        longest: int,
        recorder: Callable[[], Record] | None = None,
    ) -> None:
        """
        Args:
            model: the model, whose weights keep their addresses.
            slots: limit on running samples.
            longest: tokens of the longest sequence.
            recorder: returns what records steps; None: as CUDA graphs on a GPU, not at all on a CPU.
        """
        self._config = model.config
        self._device = model.device
        self._longest = longest
        self._recorder = recorder or (CudaRecorder if self._device.type == "cuda" else None)
        self._vocabulary_size = vocabulary_size(model)
        self._last_logits = LastLogits(model)
        self._started: list[_Started] = []
        self.slots = slots
        self.running: list[SampleState] = []
        """Running samples in the order of their rows."""
        self._num_started: list[int] = []
        """Number of tokens of each, those included that the device is computing."""
        self.reset()

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values of the running samples."""
        return num_bytes(self._cache.layers)

    @torch.inference_mode()
    def add(self, samples: Sequence[SampleState], version: WeightVersion) -> Sequence[SampleState]:
        """Prefill the prompts of new samples; their first tokens come with the next step.

        Raises:
            ValueError: if there are more samples than free slots, or one may get longer than the longest.
        """
        if len(self.running) + len(samples) > self.slots:
            raise ValueError(f"{len(samples)} samples for {self.slots - len(self.running)} slots")
        num_tokens = max((sample.num_tokens for sample in samples), default=0)
        if num_tokens > self._longest:
            raise ValueError(f"a sample of up to {num_tokens} tokens; at most {self._longest} are allowed")
        self._reserve(num_tokens)
        for group in prefill_groups(samples):
            self._prefill(group, version)
        return ()

    @torch.inference_mode()
    def step(self, version: WeightVersion) -> Sequence[SampleState]:
        """Start a step, then return the samples whose tokens of earlier calls are complete, each with one."""
        complete, self._started = self._started, []
        if any(n < sample.limit for n, sample in zip(self._num_started, self.running, strict=True)):
            self._start_step(version)
        alive = set(map(id, self.running))
        return [sample for each in complete for sample in _accept(each, alive)]

    def remove(self, samples: Sequence[SampleState]) -> None:
        """Free the slots of some samples; the last rows move into the gaps."""
        if not samples:
            return
        removed = set(map(id, samples))
        kept = [row for row, sample in enumerate(self.running) if id(sample) not in removed]
        sources = [row for row in kept if row >= len(kept)]
        targets = sorted(set(range(len(kept))).difference(kept))
        if sources:
            columns = self._bucket(max(self._num_columns(row) for row in sources))
            self._copy_rows(sources, targets, columns=columns)
        for source, target in zip(sources, targets, strict=True):
            self.running[target] = self.running[source]
            self._num_started[target] = self._num_started[source]
        del self.running[len(kept) :], self._num_started[len(kept) :]

    def reset(self) -> None:
        """Drop all samples and the cache, after a forward pass that failed."""
        self.running.clear()
        self._num_started.clear()
        self._started = []
        self._cache = StaticCache(self.slots, columns=min(_FIRST_COLUMNS, self._longest))
        with torch.inference_mode():
            self._rows = Rows.empty(self.slots, self._device, vocabulary_size=self._vocabulary_size)
            self._numbers_S = torch.arange(self.slots, device=self._device)
        self._graphs = Graphs(self._compute, self._recorder)

    def zero_nonfinite(self) -> None:
        """Zero NaN and infinity left in the cache by weights that produced non-finite values."""
        with torch.inference_mode():
            self._cache.zero_nonfinite()

    def _prefill(self, group: Sequence[SampleState], version: WeightVersion) -> None:
        first = len(self.running)
        rows = slice(first, first + len(group))
        self._rows.write(first, group, vocabulary_size=self._vocabulary_size)
        prompts = list(dict.fromkeys(sample.prompt for sample in group))
        number_of = {prompt: number for number, prompt in enumerate(prompts)}
        lengths = list(map(len, prompts))
        longest = max(lengths)
        padded = min(lengths) < longest
        columns_UP = self._on_device(left_padding_removed(lengths, longest))
        prompts_N = self._on_device(torch.tensor([number_of[sample.prompt] for sample in group]))
        # Padded on the left: then the last column has the logits of every prompt.
        tokens_UP = self._on_device(
            torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        )
        self._cache.place = PrefillPlace(self._numbers_S[rows], prompts_N, columns_UP if padded else None)
        starts_U1 = self._on_device(torch.tensor([[longest - length] for length in lengths]))
        positions_UP = torch.arange(longest, device=self._device) - starts_U1
        logits_UV = self._last_logits(
            self._cache,
            tokens_UP,
            mask_BL=(positions_UP >= 0).long() if padded else None,
            positions_BT=positions_UP.clamp(min=0),
        )
        self._rows.draw(logits_UV[prompts_N], rows, is_cut=cuts(group), last_position=self._last_position)
        self.running.extend(group)
        self._num_started.extend([1] * len(group))
        self._read(group, rows, version)

    def _start_step(self, version: WeightVersion) -> None:
        count = len(self.running)
        shape = StepShape(
            rows=min(self.slots, 1 << (count - 1).bit_length()),
            columns=self._bucket(max(map(self._num_columns, range(count)))),
            is_cut=cuts(self.running),
        )
        self._graphs.run(shape)
        self._num_started = [number + 1 for number in self._num_started]
        self._read(self.running, slice(0, count), version)

    def _compute(self, shape: StepShape) -> None:
        """Compute the next token of some rows; all that is read and written has a fixed address."""
        rows = slice(0, shape.rows)
        # A copy: the positions of the rows advance while it is used.
        positions_R = self._rows.positions_S[rows].clone()
        place = StepPlace(self._numbers_S[rows], positions_R, shape.columns)
        self._cache.place = place
        with attention.over(place, self._config):
            logits_RV = self._last_logits(
                self._cache, self._rows.tokens_S[rows, None], mask_BL=None, positions_BT=positions_R[:, None]
            )
        self._rows.draw(logits_RV, rows, is_cut=shape.is_cut, last_position=self._last_position)

    def _read(self, samples: Sequence[SampleState], rows: slice, version: WeightVersion) -> None:
        """Start to copy the newest tokens of some rows to main memory."""
        source = self._rows.sampled_S2[rows]
        if self._device.type != "cuda":
            self._started.append(_Started(tuple(samples), version, source.clone(), None))
            return
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        target.copy_(source, non_blocking=True)
        finished = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        finished.record()
        self._started.append(_Started(tuple(samples), version, target, finished))

    def _reserve(self, num_tokens: int) -> None:
        """Let the cache have a column for each token of a sample."""
        columns = min(self._longest, max(_FIRST_COLUMNS, 1 << (num_tokens - 1).bit_length()))
        if columns > self._cache.columns:
            if self._device.type == "cuda":
                torch.cuda.synchronize()  # a step with the old addresses may be running
            self._cache.grow(columns)
            self._graphs.clear()

    def _copy_rows(self, sources: Sequence[int], targets: Sequence[int], *, columns: int) -> None:
        with torch.inference_mode():
            places = [self._on_device(torch.tensor(rows)) for rows in (sources, targets)]
            self._cache.copy_rows(*places, columns=columns)
            self._rows.copy(*places)

    def _num_columns(self, row: int) -> int:
        """Return the columns that the next step of a row attends to."""
        return len(self.running[row].prompt) + self._num_started[row]

    def _bucket(self, columns: int) -> int:
        """Return the number of columns that is computed: few numbers, so that there are few graphs."""
        return min(self._cache.columns, max(_FIRST_COLUMNS, 1 << (columns - 1).bit_length()))

    @property
    def _last_position(self) -> int:
        return self._cache.columns - 1

    def _on_device(self, tensor: Tensor) -> Tensor:
        return to_device(tensor, self._device)


def _accept(started: _Started, alive: set[int]) -> Sequence[SampleState]:
    """Give each sample that still runs its token, and return those samples."""
    if started.finished is not None:
        started.finished.synchronize()
    accepted = []
    for sample, (token, logprob) in zip(started.samples, started.sampled_N2.tolist(), strict=True):
        if id(sample) in alive and sample.finish_reason is None:
            sample.accept(int(token), logprob, started.version)
            accepted.append(sample)
    return accepted
