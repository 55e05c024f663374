"""The embedded engine: a transformers model decoded by a thread in this process; this is its asyncio side.

Implements engine.py. Turns requests into work for the thread (engine_thread.py), and its results into
completions with text. Knows nothing about the wire format.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlead import metrics
from fairlead.data.control import policy_stop_ids
from fairlead.errors import Unavailable
from fairlead.nn.loading import eos_token_ids
from fairlead.transports.weights.base import Adapter
from fairlead.types import Completion, GenerationRequest, ModelInfo, PolicyInfo, WeightVersion
from services.policy.cache_check import check_cache
from services.policy.decoder import Decoder
from services.policy.detokenizer import Detokenizer
from services.policy.engine_thread import EngineThread
from services.policy.pending_request import PendingRequest
from services.policy.replacement import Replacement, check_kind
from services.policy.sample_state import SampleState
from services.policy.sampler import stream_key
from services.policy.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Limits and options of the engine."""

    max_slots: int = 32
    """Limit on the samples that are decoded at the same time."""
    max_samples: int = 64
    """Limit on the samples of one request, reported by `info`."""
    max_queue_tokens: int = 1_048_576
    """Limit on the tokens that wait for a slot."""
    finish_before_swap: bool = False
    """Finish running samples before a swap, so that no sample spans two versions (max_staleness = 0)."""


class TransformersEngine:
    """Implements `Engine` with a transformers model."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        info: ModelInfo,
        *,
        limits: EngineLimits,
        policy_metrics: metrics.PolicyMetrics,
        initial: WeightVersion | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        """
        Args:
            model: the model, on its device.
            tokenizer: its tokenizer.
            info: description of the model.
            limits: limits and options.
            policy_metrics: metrics of the policy service.
            initial: version of the weights that the model has already; None if `load` brings the first.
            adapter: the adapters that were added to the model; versions then hold adapters, too.

        Raises:
            ModelLoadError: if the decoder does not compute what the model computes.
        """
        check_cache(model, longest=info.max_sequence_tokens)
        self._model = model
        self._adapter = adapter
        self._tokenizer = tokenizer
        self._info = info
        self._limits = limits
        self._stop_ids = eos_token_ids(model, tokenizer) | policy_stop_ids(tokenizer)
        self._thread = EngineThread(
            Decoder(model, slots=limits.max_slots),
            Scheduler(slots=limits.max_slots, max_queue_tokens=limits.max_queue_tokens),
            policy_metrics,
            finish_before_swap=limits.finish_before_swap,
            initial=initial,
        )

    @property
    def version(self) -> WeightVersion | None:
        """The weights in use; None before the first."""
        return self._thread.version

    @property
    def model(self) -> ModelInfo:
        """The architecture of the served model, which is known before the first weights."""
        return self._info

    @property
    def info(self) -> PolicyInfo:
        """Description of the served model.

        Raises:
            Unavailable: before the first weights.
        """
        version = self.version
        if version is None:
            raise Unavailable("the policy has no weights yet")
        return PolicyInfo(self._info, version, self._limits.max_slots, self._limits.max_samples)

    async def generate(
        self,
        request: GenerationRequest,
        *,
        deadline: float | None,
        on_start: Callable[[], None] | None = None,
    ) -> tuple[Completion, ...]:
        """Return one completion for each sample; see `Engine.generate`."""
        pending = self._pending(request, deadline, streams=False, on_start=on_start)
        self._thread.put(pending)
        try:
            completions = await asyncio.wrap_future(pending.future)
        finally:
            self._cancel_if_open(pending)
        return tuple(replace(each, text=self._decode(each.token_ids)) for each in completions)

    async def stream(
        self, request: GenerationRequest, *, deadline: float | None
    ) -> AsyncGenerator[tuple[int, Completion], None]:
        """Yield new parts as tokens are sampled; see `Engine.stream`."""
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[tuple[int, Completion] | None] = asyncio.Queue()

        def enqueue(delta: tuple[int, Completion] | None) -> None:
            with suppress(RuntimeError):  # the loop has ended, and the caller with it
                loop.call_soon_threadsafe(deltas.put_nowait, delta)

        pending = self._pending(request, deadline, streams=True)
        pending.on_delta = lambda index, delta: enqueue((index, delta))
        pending.future.add_done_callback(lambda _: enqueue(None))
        self._thread.put(pending)
        try:
            while (delta := await deltas.get()) is not None:
                yield delta
            pending.future.result()
        finally:
            self._cancel_if_open(pending)

    async def load(self, version: WeightVersion, folder: Path, *, adapter: Adapter | None = None) -> None:
        """Read weights next to those in use, then swap; see `Engine.load`."""
        if self.version is None or version > self.version:
            check_kind(adapter, self._adapter)
            replacement = await asyncio.to_thread(Replacement.read, folder, self._model)
            await asyncio.wrap_future(self._thread.swap(version, replacement))

    async def wait_failed(self) -> None:
        """Wait until the engine cannot continue, and raise its error."""
        await asyncio.shield(asyncio.wrap_future(self._thread.failure))

    def close(self) -> None:
        """Stop; pending requests fail with Unavailable."""
        self._thread.close()

    def _pending(
        self,
        request: GenerationRequest,
        deadline: float | None,
        *,
        streams: bool,
        on_start: Callable[[], None] | None = None,
    ) -> PendingRequest:
        sampling = request.sampling
        max_new_tokens = self._info.max_sequence_tokens - len(request.prompt_token_ids)
        samples = [
            SampleState(
                prompt=request.prompt_token_ids,
                sampling=sampling,
                key=stream_key(sampling.seed, index),
                stop_ids=self._stop_ids.union(sampling.stop_token_ids),
                limit=min(sampling.max_new_tokens, max_new_tokens),
                detokenizer=Detokenizer(self._decode, stop_strings=sampling.stop_strings)
                if streams or sampling.stop_strings
                else None,
            )
            for index in range(request.num_samples)
        ]
        return PendingRequest(
            samples,
            min_version=request.min_version,
            deadline=deadline,
            exclusive=request.exclusive,
            on_start=on_start,
        )

    def _cancel_if_open(self, pending: PendingRequest) -> None:
        if not pending.closed:
            pending.future.cancel()
            self._thread.wake()

    def _decode(self, token_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text
