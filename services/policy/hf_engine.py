"""The embedded engine: a transformers model decoded by a thread of its own; the asyncio side of it.

Implements engine.py. Turns requests into tickets for the thread (engine_thread.py), and what comes back into
completions with text. Knows no wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlead import metrics
from fairlead.errors import Unavailable
from fairlead.nn.loading import eos_token_ids
from fairlead.transports.weights.base import Adapter
from fairlead.types import Completion, GenerationRequest, ModelInfo, PolicyInfo, WeightVersion
from services.policy.architecture import check_cache
from services.policy.decoder import Decoder
from services.policy.detokenizer import Detokenizer
from services.policy.engine_thread import EngineThread
from services.policy.replacement import Replacement, check_kind
from services.policy.sample import Sample
from services.policy.sampler import stream_key
from services.policy.scheduler import Scheduler
from services.policy.ticket import Ticket


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds and choices of the engine."""

    max_slots: int = 32
    """Sequences decoded at the same time."""
    max_samples: int = 64
    """Largest number of samples of one request, for `info`."""
    max_queue_tokens: int = 1_048_576
    """Tokens that may wait for a slot."""
    finish_before_swap: bool = False
    """Let running sequences end before a swap, so that none spans one (max_staleness = 0)."""


class HfEngine:
    """An Engine; see there."""

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
        """`initial` names the weights that the model has already; without it `load` brings the first.

        `adapter` says what adapters the model has; versions are then adapters, too.

        Raises:
            ModelLoadError: if the architecture cannot be decoded with a cache of keys and values.
        """
        check_cache(model)
        self._model = model
        self._adapter = adapter
        self._tokenizer = tokenizer
        self._info = info
        self._limits = limits
        self._eos = eos_token_ids(model, tokenizer)
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
    def info(self) -> PolicyInfo:
        """What is served.

        Raises:
            Unavailable: before the first weights.
        """
        version = self.version
        if version is None:
            raise Unavailable("the policy has no weights yet")
        return PolicyInfo(self._info, version, self._limits.max_slots, self._limits.max_samples)

    async def generate(self, request: GenerationRequest, *, deadline: float | None) -> tuple[Completion, ...]:
        """One completion for each sample; see Engine.generate."""
        ticket = self._ticket(request, deadline, streams=False)
        self._thread.put(ticket)
        try:
            completions = await asyncio.wrap_future(ticket.future)
        finally:
            self._let_go(ticket)
        return tuple(replace(each, text=self._decode(each.token_ids)) for each in completions)

    async def stream(
        self, request: GenerationRequest, *, deadline: float | None
    ) -> AsyncGenerator[tuple[int, Completion], None]:
        """Deltas as tokens are sampled; see Engine.stream."""
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[tuple[int, Completion] | None] = asyncio.Queue()

        def hand_over(delta: tuple[int, Completion] | None) -> None:
            with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
                loop.call_soon_threadsafe(deltas.put_nowait, delta)

        ticket = self._ticket(request, deadline, streams=True)
        ticket.on_delta = lambda index, delta: hand_over((index, delta))
        ticket.future.add_done_callback(lambda _: hand_over(None))
        self._thread.put(ticket)
        try:
            while (delta := await deltas.get()) is not None:
                yield delta
            ticket.future.result()
        finally:
            self._let_go(ticket)

    async def load(self, version: WeightVersion, folder: Path, *, adapter: Adapter | None = None) -> None:
        """Reads weights beside those in use, then swaps; see Engine.load."""
        if self.version is None or version > self.version:
            check_kind(adapter, self._adapter)
            replacement = await asyncio.to_thread(Replacement.read, folder, self._model)
            await asyncio.wrap_future(self._thread.swap(version, replacement))

    async def wait_failed(self) -> None:
        """Waits until the engine cannot go on, and raises why."""
        await asyncio.shield(asyncio.wrap_future(self._thread.failure))

    def close(self) -> None:
        """Stops; whoever still waits gets Unavailable."""
        self._thread.close()

    def _ticket(self, request: GenerationRequest, deadline: float | None, *, streams: bool) -> Ticket:
        sampling = request.sampling
        room = self._info.max_sequence_tokens - len(request.prompt_token_ids)
        samples = [
            Sample(
                prompt=request.prompt_token_ids,
                sampling=sampling,
                key=stream_key(sampling.seed, index),
                stop_ids=self._eos.union(sampling.stop_token_ids),
                limit=min(sampling.max_new_tokens, room),
                detokenizer=Detokenizer(self._decode, stop_strings=sampling.stop_strings)
                if streams or sampling.stop_strings
                else None,
            )
            for index in range(request.num_samples)
        ]
        return Ticket(
            samples, min_version=request.min_version, deadline=deadline, exclusive=request.exclusive
        )

    def _let_go(self, ticket: Ticket) -> None:
        if not ticket.closed:
            ticket.future.cancel()
            self._thread.wake()

    def _decode(self, token_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text
