"""Decode samples with vLLM: start them as slots become free, and swap weights in between.

Belongs to one event loop. vLLM batches the samples and decodes them in processes of its own; a sample is one
seeded request of vLLM. Which weights are good is decided in weights.py. Knows nothing about the tokenizer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams, TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from fairlead import metrics, watchdog
from fairlead.errors import EngineFailed, FairleadError, InvalidInput, ReplicaLost, Unavailable
from fairlead.types import WeightVersion
from services.policy.front import EngineLimits
from services.policy.pending_request import PendingRequest
from services.policy.sample_state import SampleState
from services.policy.scheduler import Scheduler
from services.policy.vllm.steps import StepRecorder
from services.runtime.exclusive import ExclusiveSlot
from services.vllm.shutdown import shut_down

logger = logging.getLogger(__name__)

_LOWEST_TEMPERATURE = 0.01
"""vLLM replaces lower temperatures above 0 by this one."""
_NO_LABEL = "default"
"""vLLM's label of the weights that it started with."""
_ENDED = "vLLM's engine has ended unexpectedly; the log names the reason"
_IDLE_SECONDS = 1.0
"""Time between two checks whether vLLM's processes are alive."""


@dataclass(frozen=True, slots=True)
class InUse:
    """The weights that new samples start with."""

    version: WeightVersion
    """Their version."""
    lora: LoRARequest | None = None
    """The adapter; None if the version is a whole model."""


class VllmBackend:
    """Implements `Backend` with an `AsyncLLM`."""

    def __init__(
        self,
        llm: AsyncLLM,
        policy_metrics: metrics.PolicyMetrics,
        steps: StepRecorder,
        *,
        limits: EngineLimits,
        vocabulary_size: int,
    ) -> None:
        self.llm = llm
        self.failure: Future[None] = Future()
        """Fails with the error that made the engine give up."""
        self._metrics = policy_metrics
        self._steps = steps
        self._slots = limits.max_slots
        self._vocabulary_size = vocabulary_size
        self._scheduler = Scheduler(
            slots=limits.max_slots, max_queue_tokens=limits.max_queue_tokens, max_deferred_steps=0
        )
        self._exclusive = ExclusiveSlot[PendingRequest]()
        self._request_of: dict[SampleState, PendingRequest] = {}
        self._tasks: dict[SampleState, asyncio.Task[None]] = {}
        self._loras: dict[SampleState, LoRARequest] = {}
        self._in_use: InUse | None = None
        self._sampling: WeightVersion | None = None
        self._held_back = 0
        self._stopping = False
        self._wake = asyncio.Event()
        self._trusted = asyncio.Event()
        self._trusted.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._decoding = contextlib.ExitStack()

    @property
    def version(self) -> WeightVersion | None:
        """The weights in use; None before the first."""
        return None if self._in_use is None else self._in_use.version

    @property
    def num_running(self) -> int:
        """Number of samples being decoded."""
        return len(self._tasks)

    def is_running(self, lora: LoRARequest) -> bool:
        """Return whether a running sample uses an adapter."""
        return lora in self._loras.values()

    def start(self) -> None:
        """Start decoding in the running event loop, unless that was done before."""
        if self._main is None:
            self._loop = asyncio.get_running_loop()
            self._main = asyncio.create_task(self._run(), name="vllm-backend")

    def put(self, request: PendingRequest) -> None:
        """Queue a request; see `Backend.put`.

        Raises:
            InvalidInput: for a temperature that vLLM would replace.
        """
        if self._stopping:
            raise Unavailable("the policy is stopping")
        if self._in_use is None:
            raise Unavailable("the policy has no weights yet")
        temperature = request.samples[0].sampling.temperature
        if 0 < temperature < _LOWEST_TEMPERATURE:
            allowed = f"0, or at least {_LOWEST_TEMPERATURE:g} with vLLM as the engine"
            raise InvalidInput("sampling.temperature", got=temperature, allowed=allowed)
        self.start()
        self._scheduler.put(request, tokens_per_second=self._steps.tokens_per_second)
        self._wake.set()

    def wake(self) -> None:
        """Notice cancelled requests."""
        self._wake.set()

    def use(self, in_use: InUse) -> None:
        """Start new samples with these weights."""
        self._in_use = in_use
        self._sampling = in_use.version
        self._metrics.weight_incarnation.set(in_use.version.incarnation)
        self._metrics.weight_update.set(in_use.version.update)
        self._wake.set()

    @contextlib.contextmanager
    def no_new_samples(self) -> Iterator[None]:
        """Start no sample within the block."""
        self._held_back += 1
        try:
            yield
        finally:
            self._held_back -= 1
            self._wake.set()

    @contextlib.contextmanager
    def trial(self, version: WeightVersion) -> Iterator[None]:
        """Deliver no token within the block: running samples may continue with an untried version."""
        self._trusted.clear()
        self._sampling = version
        try:
            yield
        finally:
            self._sampling = self.version  # `use` follows if the trial succeeded
            self._trusted.set()

    async def drop_running(self, error: FairleadError) -> None:
        """Fail every request with a running sample, and wait until its samples have ended."""
        for request in dict.fromkeys(self._request_of.values()):
            request.fail(error)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def fail(self, error: Exception) -> None:
        """Give up: the process must end."""
        with suppress(InvalidStateError):
            self.failure.set_exception(error)
        self._stopping = True
        if self.llm.errored:
            # Any running request may have killed vLLM, as it may kill a replica.
            for request in dict.fromkeys(self._request_of.values()):
                request.fail(ReplicaLost(_ENDED))
        self._fail_all(Unavailable("the policy is stopping"))

    def close(self) -> None:
        """Stop; pending requests fail with Unavailable. Called from another thread than the loop's."""
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        shut_down(self.llm)

    async def _stop(self) -> None:
        self._stopping = True
        self._fail_all(Unavailable("the policy is stopping"))
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, *self._tasks.values(), return_exceptions=True)

    def _fail_all(self, error: FairleadError) -> None:
        for request in (*self._request_of.values(), *self._scheduler.requests()):
            request.fail(error)
        for task in self._tasks.values():
            task.cancel()

    async def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            if self.llm.errored:
                self.fail(EngineFailed(_ENDED))
                return
            try:
                self._round()
            except Exception as error:
                logger.exception("the engine cannot continue")
                self.fail(error)
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._wait_seconds()):
                    await self._wake.wait()

    def _round(self) -> None:
        now = time.monotonic()
        for request in (*dict.fromkeys(self._request_of.values()), *self._scheduler.requests()):
            request.expire_if_due(now, self.version)
        self._scheduler.drop_closed()
        for sample, request in self._request_of.items():
            if request.closed:
                self._tasks[sample].cancel()
        if self._in_use is not None and not self._held_back:
            for request, sample in self._take(self._in_use.version):
                self._start(request, sample, self._in_use)
        self._metrics.slots_used.set(len(self._tasks))
        self._metrics.waiting.set(len(self._scheduler))

    def _wait_seconds(self) -> float:
        """Return the time until the next round, if nothing wakes it before."""
        requests = (*self._request_of.values(), *self._scheduler.requests())
        deadlines = [request.deadline(self.version) for request in requests]
        due = min((each for each in deadlines if each is not None), default=math.inf) - time.monotonic()
        return max(0.0, min(due, self._exclusive.settle_seconds() or math.inf, _IDLE_SECONDS))

    def _take(self, version: WeightVersion) -> list[tuple[PendingRequest, SampleState]]:
        """Return the samples that start now."""
        served = (request for request in self._scheduler.requests() if request.is_served_by(version))
        startable = self._exclusive.startable(served, self._request_of.values())
        free = self._slots - len(self._tasks)
        return self._scheduler.take(free=free, version=version, only=frozenset(startable))

    def _start(self, request: PendingRequest, sample: SampleState, in_use: InUse) -> None:
        if not self._tasks:
            wait = self._decoding.enter_context(watchdog.PROCESS.waiting("model", "a decoding step"))
            self._steps.on_step = wait.restart
        sample.recomputed = True
        if in_use.lora is not None:
            self._loras[sample] = in_use.lora
        self._request_of[sample] = request
        task = asyncio.create_task(self._generate(request, sample, in_use))
        self._tasks[sample] = task
        task.add_done_callback(lambda done: self._ended(sample, done))

    def _ended(self, sample: SampleState, task: asyncio.Task[None]) -> None:
        request = self._request_of.pop(sample)
        self._loras.pop(sample, None)
        del self._tasks[sample]
        if not self._tasks:
            self._steps.on_step = None
            self._decoding.close()
        error = None if task.cancelled() else task.exception()
        if isinstance(error, EngineDeadError):
            request.fail(ReplicaLost(_ENDED))
            self.fail(EngineFailed(_ENDED))
        elif error is not None:
            logger.error("a request of vLLM failed", exc_info=error)
            request.fail(error if isinstance(error, Exception) else Unavailable("the policy is stopping"))
        elif not request.closed and sample.finish_reason is None:
            request.fail(Unavailable("the request was stopped before it was complete"))
        self._wake.set()

    async def _generate(self, request: PendingRequest, sample: SampleState, in_use: InUse) -> None:
        outputs = self.llm.generate(
            TokensPrompt(prompt_token_ids=list(sample.prompt)),
            self._params(sample),
            request_id=uuid.uuid4().hex,
            lora_request=in_use.lora,
        )
        async with aclosing(outputs) as stream:
            async for output in stream:
                new = output.outputs[0]
                # Set before the wait, during which an untried version may become another.
                current = in_use.version if in_use.lora else self._sampling or in_use.version
                versions = [current] * len(new.token_ids)
                if sample.detokenizer is None and in_use.lora is None:
                    versions = _per_token(new.weight_versions or (), versions)
                await self._trusted.wait()
                if not self._accept(request, sample, new, versions):
                    return

    def _accept(
        self,
        request: PendingRequest,
        sample: SampleState,
        output: CompletionOutput,
        versions: Sequence[WeightVersion],
    ) -> bool:
        """Append the new tokens of a sample. Return whether it continues."""
        assert output.logprobs is not None
        for index, token in enumerate(output.token_ids):
            logprob = output.logprobs[index][token].logprob
            if not math.isfinite(logprob):
                raise FloatingPointError(f"logits are not finite under weights {versions[index]}")
            sample.accept(token, logprob, versions[index])
            request.advance(sample)
            if sample.finish_reason is not None or request.closed:
                return False
        return True

    def _params(self, sample: SampleState) -> SamplingParams:
        sampling = sample.sampling
        truncates = sampling.temperature > 0
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p if truncates else 1.0,
            top_k=sampling.top_k if truncates and sampling.top_k < self._vocabulary_size else 0,
            seed=sample.key & (2**63 - 1),
            max_tokens=sample.limit,
            stop_token_ids=sorted(sample.stop_ids),
            ignore_eos=True,  # its ids are among those above
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY
            if sample.detokenizer is None
            else RequestOutputKind.DELTA,
        )


def _per_token(spans: Sequence[Any], default: Sequence[WeightVersion]) -> list[WeightVersion]:
    """Return the version of each token by vLLM's spans, which only a final output has."""
    versions = list(default)
    for span in spans:
        version = WeightVersion(0, 0) if span.version == _NO_LABEL else WeightVersion.parse(span.version)
        versions[span.start : span.end] = [version] * (span.end - span.start)
    return versions
