"""The asyncio side of every engine: requests become samples, and samples become completions with text.

A backend decodes the samples: a thread with a transformers model (engine_thread.py), or vLLM
(vllm/backend.py). Knows nothing about models, weights or the wire format.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from fairlead import metrics
from fairlead.errors import Unavailable
from fairlead.transports.weights.base import Adapter, Probe
from fairlead.types import Completion, GenerationRequest, ModelInfo, PolicyInfo, WeightVersion
from services.policy.detokenizer import Detokenizer
from services.policy.pending_request import PendingRequest
from services.policy.replacement import check_kind
from services.policy.sample_state import SampleState
from services.policy.sampler import stream_key


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Limits and options of an engine."""

    max_slots: int = 32
    """Limit on the samples that are decoded at the same time."""
    max_samples: int = 64
    """Limit on the samples of one request, reported by `info`."""
    max_queue_tokens: int = 1_048_576
    """Limit on the tokens that wait for a slot."""
    finish_before_swap: bool = False
    """Finish running samples before a swap, so that no sample spans two versions (max_staleness = 0)."""


class Backend(Protocol):
    """Decodes the samples of requests."""

    failure: Future[None]
    """Fails with the error that made the backend give up."""

    @property
    def version(self) -> WeightVersion | None:
        """The weights in use; None before the first."""
        ...

    def put(self, request: PendingRequest) -> None:
        """Queue a request.

        Raises:
            Overloaded: if the queue is full.
            Unavailable: before the first weights, and while stopping.
        """
        ...

    def wake(self) -> None:
        """Notice cancelled requests."""
        ...

    def close(self) -> None:
        """Stop; pending requests fail with Unavailable."""
        ...


class EngineFront(ABC):
    """The part of `Engine` that does not depend on the backend; an engine adds how it swaps weights."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: PreTrainedTokenizerBase,
        info: ModelInfo,
        *,
        limits: EngineLimits,
        stop_ids: frozenset[int],
        adapter: Adapter | None,
        policy_metrics: metrics.PolicyMetrics,
    ) -> None:
        """
        Args:
            backend: decodes the samples.
            tokenizer: the model's tokenizer.
            info: description of the model.
            limits: limits and options.
            stop_ids: token ids that end every completion.
            adapter: the adapters that were added to the model; versions then hold adapters, too.
            policy_metrics: of requests; the backend counts steps and tokens.
        """
        self._backend = backend
        self._tokenizer = tokenizer
        self._info = info
        self._limits = limits
        self._stop_ids = stop_ids
        self._adapter = adapter
        self._metrics = policy_metrics
        policy_metrics.slots.set(limits.max_slots)

    @property
    def version(self) -> WeightVersion | None:
        """The weights in use; None before the first."""
        return self._backend.version

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
        self._backend.put(pending)
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
        self._backend.put(pending)
        try:
            while (delta := await deltas.get()) is not None:
                yield delta
            pending.future.result()
        finally:
            self._cancel_if_open(pending)

    async def load(
        self,
        version: WeightVersion,
        folder: Path,
        *,
        adapter: Adapter | None = None,
        probe: Probe | None = None,
    ) -> None:
        """Swap to the weights of a newer version; see `Engine.load`."""
        if self.version is None or version > self.version:
            check_kind(adapter, self._adapter)
            await self._swap(version, folder, adapter, probe)

    @abstractmethod
    async def _swap(
        self, version: WeightVersion, folder: Path, adapter: Adapter | None, probe: Probe | None
    ) -> None:
        """Check the files of a newer version, of the kind that the model needs, and swap to it."""

    async def wait_failed(self) -> None:
        """Wait until the engine cannot continue, and raise its error."""
        await asyncio.shield(asyncio.wrap_future(self._backend.failure))

    def close(self) -> None:
        """Stop; pending requests fail with Unavailable."""
        self._backend.close()

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
        arrived = time.monotonic()
        pending = PendingRequest(
            samples,
            min_version=request.min_version,
            deadline=deadline,
            exclusive=request.exclusive,
            on_start=on_start,
            on_first_token=partial(self._note_first_token, arrived, len(request.prompt_token_ids)),
        )
        pending.future.add_done_callback(partial(self._count, len(samples)))
        return pending

    def _note_first_token(self, arrived: float, prompt_tokens: int) -> None:
        """Note that the prompt of a request has been read."""
        self._metrics.first_token_seconds.observe(time.monotonic() - arrived)
        self._metrics.prompt_tokens.inc(prompt_tokens)

    def _count(self, num_samples: int, future: Future[tuple[Completion, ...]]) -> None:
        """Count the answers of a request that has ended by the reasons of their ends."""
        if future.cancelled() or future.exception() is not None:
            reason = "cancelled" if future.cancelled() else "failed"
            self._metrics.finished.labels(reason=reason).inc(num_samples)
            return
        for completion in future.result():
            if completion.finish_reason is not None:
                self._metrics.finished.labels(reason=completion.finish_reason.value).inc()

    def _cancel_if_open(self, pending: PendingRequest) -> None:
        if not pending.closed:
            pending.future.cancel()
        if pending.future.cancelled():  # also by the caller, whose future is chained to this one
            self._backend.wake()

    def _decode(self, token_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text
