"""The decoding thread of the engine: admits samples, runs decoding steps, and swaps weights in between.

The engine passes it requests and new weights from the asyncio side; `_round` is one iteration of its loop.
Knows nothing about asyncio or the tokenizer.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass

from fairlead import metrics, watchdog
from fairlead.errors import Unavailable
from fairlead.types import WeightVersion
from services.policy.pending_request import PendingRequest
from services.policy.replacement import Replacement
from services.policy.running_batch import RunningBatch
from services.policy.sample_state import SampleState
from services.policy.scheduler import Scheduler
from services.runtime.exclusive import ExclusiveSlot

logger = logging.getLogger(__name__)

_FAILURES_IN_A_ROW = 3
"""Failed rounds in a row after which the engine gives up, so that the process is restarted."""


@dataclass(frozen=True, slots=True)
class _Swap:
    """Weights that wait to be swapped in."""

    version: WeightVersion
    replacement: Replacement
    done: Future[None]


class EngineThread:
    """Runs the decoder until closed."""

    def __init__(
        self,
        decoder: RunningBatch,
        scheduler: Scheduler,
        policy_metrics: metrics.PolicyMetrics,
        *,
        finish_before_swap: bool,
        initial: WeightVersion | None,
    ) -> None:
        """With `finish_before_swap`, running samples finish before a swap and new ones wait, so that no
        sample spans two versions.
        """
        self._decoder = decoder
        self._scheduler = scheduler
        self._metrics = policy_metrics
        self._finish_before_swap = finish_before_swap
        self._request_of: dict[SampleState, PendingRequest] = {}
        self._tokens_per_second = 0.0
        self._wake = threading.Condition()
        self._exclusive = ExclusiveSlot[PendingRequest]()
        self._swap: _Swap | None = None
        self._stopping = False
        self.failure: Future[None] = Future()
        """Fails with the error that made the thread give up."""
        self.version: WeightVersion | None = None
        """The weights in use."""
        if initial is not None:
            self._use(initial)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def put(self, request: PendingRequest) -> None:
        """Queue a request.

        Raises:
            Overloaded: if the queue is full.
            Unavailable: before the first weights, and while stopping.
        """
        with self._wake:
            self._check_running()
            if self.version is None:
                raise Unavailable("the policy has no weights yet")
            self._scheduler.put(request, tokens_per_second=self._tokens_per_second)
            self._wake.notify()

    def swap(self, version: WeightVersion, replacement: Replacement) -> Future[None]:
        """Swap in weights between two steps; the future resolves when they, or newer ones, are in use."""
        swap = _Swap(version, replacement, Future())
        with self._wake:
            self._check_running()
            superseded, self._swap = self._swap, swap
            self._wake.notify()
        if superseded is not None:
            _resolve(superseded)
        return swap.done

    def wake(self) -> None:
        """Wake the thread so that it notices cancelled requests."""
        with self._wake:
            self._wake.notify()

    def close(self) -> None:
        """Stop; pending requests fail with Unavailable."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _check_running(self) -> None:
        if self._stopping:
            raise Unavailable("the policy is stopping")

    def _run(self) -> None:
        failures = 0
        while self._wait_for_work():
            try:
                with watchdog.PROCESS.waiting("model", "a decoding step"):
                    self._round()
                failures = 0
            except Exception as error:
                failures += 1
                logger.exception("a decoding round failed; its requests fail and the engine continues")
                self._fail_running(error)
                if failures == _FAILURES_IN_A_ROW:
                    self.failure.set_exception(error)
                    break
        with self._wake:
            self._stopping = True
            swap, self._swap = self._swap, None
        stopping = Unavailable("the policy is stopping")
        if swap is not None:
            with suppress(InvalidStateError):
                swap.done.set_exception(stopping)
        self._fail_running(stopping)
        for request in self._scheduler.requests():
            request.fail(stopping)

    def _wait_for_work(self) -> bool:
        """Sleep until there is work. Return False when stopping."""
        with self._wake:
            while not self._stopping:
                if self._swap is not None or self._decoder.running:
                    return True
                requests = self._scheduler.requests()
                now = time.monotonic()
                settle = self._exclusive.settle_seconds()
                if settle and not any(request.closed for request in requests):
                    self._wake.wait(settle)
                    continue
                deadlines = [request.deadline(self.version) for request in requests]
                due = min((deadline for deadline in deadlines if deadline is not None), default=None)
                if any(request.closed or self._is_served(request) for request in requests):
                    arriving = self._scheduler.arriving_seconds()
                    if not arriving:
                        return True
                    self._wake.wait(arriving)
                    continue
                if due is not None and due <= now:
                    return True
                self._wake.wait(None if due is None else due - now)
            return False

    def _round(self) -> None:
        self._drop_closed()
        swapping = self._swap_if_due()
        if self.version is None:
            return
        if not swapping:
            taken = self._take(self.version)
            if taken:
                self._deliver(self._decoder.add([sample for _, sample in taken], self.version))
        if self._decoder.running:
            start = time.monotonic()
            samples = self._decoder.step(self.version)
            self._metrics.steps.inc()
            self._deliver(samples)
            rate = len(samples) / (time.monotonic() - start)
            self._tokens_per_second += 0.1 * (rate - self._tokens_per_second)
        self._metrics.slots_used.set(len(self._decoder.running))
        self._metrics.cache_bytes.set(self._decoder.cache_bytes)
        self._metrics.waiting.set(len(self._scheduler))

    def _take(self, version: WeightVersion) -> list[tuple[PendingRequest, SampleState]]:
        """Return the samples that start now, marked as running."""
        free = self._decoder.slots - len(self._decoder.running)
        if not free or not len(self._scheduler):
            return []
        served = (request for request in self._scheduler.requests() if request.is_served_by(version))
        startable = self._exclusive.startable(served, self._request_of.values())
        taken = self._scheduler.take(free=free, version=version, only=frozenset(startable))
        self._request_of.update((sample, request) for request, sample in taken)
        return taken

    def _drop_closed(self) -> None:
        now = time.monotonic()
        running = dict.fromkeys(self._request_of.values())
        for request in (*running, *self._scheduler.requests()):
            request.expire_if_due(now, self.version)
        self._scheduler.drop_closed()
        self._remove([sample for sample, request in self._request_of.items() if request.closed])

    def _swap_if_due(self) -> bool:
        """Swap in waiting weights if allowed now. Return whether weights are still waiting."""
        with self._wake:
            if self._swap is None:
                return False
            if self._finish_before_swap and self._decoder.running:
                return True
            swap, self._swap = self._swap, None
        start = time.perf_counter()
        if self.version is None or swap.version > self.version:
            swap.replacement.apply(in_place=self._decoder.keeps_addresses)
            self._use(swap.version)
            self._metrics.swaps.inc()
            self._metrics.swap_seconds.observe(time.perf_counter() - start)
            logger.info(
                "weights %s in use", swap.version, extra={"running_sequences": len(self._decoder.running)}
            )
        _resolve(swap)
        return False

    def _use(self, version: WeightVersion) -> None:
        self.version = version
        self._metrics.weight_incarnation.set(version.incarnation)
        self._metrics.weight_update.set(version.update)

    def _deliver(self, samples: Sequence[SampleState]) -> None:
        """Pass each sample's newest token to its request, and remove the samples that ended."""
        self._metrics.tokens.inc(len(samples))
        ended = []
        for sample in samples:
            request = self._request_of[sample]
            if not math.isfinite(sample.logprobs[-1]):
                request.fail(FloatingPointError(f"logits are not finite under weights {self.version}"))
                self._decoder.zero_nonfinite()
                ended.append(sample)
                continue
            request.advance(sample)
            if sample.finish_reason is not None:
                ended.append(sample)
        self._remove(ended)

    def _remove(self, samples: Sequence[SampleState]) -> None:
        self._decoder.remove(samples)
        for sample in samples:
            del self._request_of[sample]

    def _fail_running(self, error: Exception) -> None:
        for request in self._request_of.values():
            request.fail(error)
        self._request_of.clear()
        self._decoder.reset()

    def _is_served(self, request: PendingRequest) -> bool:
        return self.version is not None and request.is_served_by(self.version)


def _resolve(swap: _Swap) -> None:
    with suppress(InvalidStateError):  # the caller was cancelled
        swap.done.set_result(None)
