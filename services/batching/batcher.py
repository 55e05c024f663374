"""The micro-batcher of the reward and reference services: sequences of all callers share forward passes.

Sits between a servicer and the function that runs the model. Knows only the number of tokens of an item.
Work-conserving: a free model takes all waiting sequences that fit, so an idle server adds no delay.

Two threads alternate. While one runs the model, the other chooses the next batch and builds its tensors as
soon as a full batch is waiting; with less than a full batch it waits for the model, because more sequences
may arrive. Neither waits for the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from fairlead import metrics, watchdog
from fairlead.config.serving import BatchingSection
from fairlead.errors import DeadlineExceeded, Overloaded, Unavailable
from fairlead.types import Priority
from services.batching.batch_queue import (
    MAX_BULK_WAIT_SECONDS,
    Admission,
    Batch,
    BatchQueue,
    BatchResult,
    QueuedRequest,
    QueuedSequence,
)
from services.batching.packing import Packing, PaddedPacking

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Compute = Callable[[Sequence[_Item]], Sequence[_Result | Exception]]
"""Runs a batch: returns for each item its result, or its own error."""
Prepare = Callable[[Sequence[_Item]], Callable[[], Sequence[_Result | Exception]]]
"""Builds the tensors of a batch; the function it returns runs the model."""


class MicroBatcher(Generic[_Item, _Result]):
    """Packs waiting items into batches, runs them and returns results in order of the request.

    An async context manager; one for each model.
    """

    def __init__(
        self,
        compute: Compute[_Item, _Result],
        section: BatchingSection,
        *,
        batcher_metrics: metrics.BatcherMetrics,
        field_name: str,
        prepare: Prepare[_Item, _Result] | None = None,
        packing: Packing[_Item] | None = None,
        max_bulk_wait_seconds: float = MAX_BULK_WAIT_SECONDS,
    ) -> None:
        """
        Args:
            compute: runs one batch, never two at a time. If it raises, every item is retried in isolation,
                unless the model is unavailable.
            section: limits.
            batcher_metrics: counters of batchers.
            field_name: the request's name for its items, used in errors.
            prepare: builds the call to the model while another batch runs; None if there is nothing to build.
            packing: chooses batches; None packs sequences of similar length.
            max_bulk_wait_seconds: longest wait of bulk requests for a batch while online requests arrive.
        """
        self._prepare = isolate_failures(prepare or (lambda items: lambda: compute(items)))
        self._section = section
        self._metrics = batcher_metrics
        self._admission = Admission(section, field_name=field_name)
        self._queue = BatchQueue[_Item, _Result](
            packing or PaddedPacking[_Item](),
            max_batch_tokens=section.max_batch_tokens,
            max_bulk_wait_seconds=max_bulk_wait_seconds,
        )
        # Guards the queue, admission and the two flags. Each condition has a single waiter and is notified
        # only when that waiter can proceed: waking a thread in vain costs as much as accepting a request.
        self._lock = threading.Lock()
        self._due = threading.Condition(self._lock)
        self._free = threading.Condition(self._lock)
        self._turn = threading.Lock()
        self._running = False
        self._counted_tokens = 0
        self._closing = True
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._closing = False
        names = ("model-0", "model-1")
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop after the running batch; fail waiting requests with Unavailable."""
        with self._lock:
            self._closing = True
            self._due.notify()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        with self._lock:
            waiting = list(self._queue.drain())
            self._count_queue()
        for sequence in waiting:
            sequence.request.fail(Unavailable("the service is stopping"))

    @property
    def queue_tokens(self) -> int:
        """Waiting tokens, including those of a chosen batch that waits for the model."""
        return self._queue.tokens + self._admission.chosen_tokens

    async def submit(
        self,
        items: Sequence[_Item],
        num_tokens: Sequence[int],
        *,
        deadline: float | None = None,
        priority: Priority = Priority.ONLINE,
    ) -> list[_Result]:
        """Return the results of the items, in order; see `submit_timed`."""
        timed = await self.submit_timed(items, num_tokens, deadline=deadline, priority=priority)
        return timed.results

    async def submit_timed(
        self,
        items: Sequence[_Item],
        num_tokens: Sequence[int],
        *,
        deadline: float | None = None,
        priority: Priority = Priority.ONLINE,
    ) -> BatchResult[_Result]:
        """Return the results of the items, in order, with queue time and compute time.

        Args:
            items: what to compute.
            num_tokens: length of each item, at least 1.
            deadline: on the clock of `time.monotonic`; items that have not started by then are not computed.
            priority: online requests go before bulk requests.

        Raises:
            InvalidInput: if the items by themselves exceed the limit of the queue.
            Overloaded: if the queue is full or the wait too long; has the delay before the next attempt.
            DeadlineExceeded: if the deadline passed before the model was free.
            Unavailable: if the batcher is closed.
        """
        if self._closing:
            raise Unavailable("the service is stopping")
        total = sum(num_tokens)
        request = QueuedRequest[_Result](
            future=asyncio.get_running_loop().create_future(),
            results=[None] * len(items),
            missing=len(items),
            deadline=deadline,
            priority=priority,
            arrived=time.monotonic(),
            waiting_tokens=total,
        )
        with self._lock:
            self._admit(len(items), total, priority)
            if not items:
                return BatchResult([], 0.0, 0.0)
            self._queue.add(request, items, num_tokens)
            self._count_queue()
            if self._is_due():
                self._due.notify()
        try:
            return await request.future
        finally:
            # If the caller cancelled or one sequence failed, the remaining sequences are not computed.
            with self._lock:
                self._queue.forget(request)
                self._count_queue()

    def _admit(self, count: int, total: int, priority: Priority) -> None:
        online = self._queue.tokens_of(Priority.ONLINE)
        bulk = self._queue.tokens_of(Priority.BULK)
        try:
            self._admission.check(total, priority, online_tokens=online, bulk_tokens=bulk)
        except Overloaded:
            self._metrics.sequences.labels("refused").inc(count)
            raise

    def _count_queue(self) -> None:
        # Adds the difference: two batchers share the metric while a model is being replaced.
        tokens = self.queue_tokens
        self._metrics.queue_tokens.inc(tokens - self._counted_tokens)
        self._counted_tokens = tokens

    def _work(self) -> None:
        """Loop of each thread: choose and prepare a batch in turn, run the model, deliver the results."""
        while True:
            with self._turn:
                batch = self._next_batch()
                if batch is None:
                    return
                run = self._prepare([member.item for member in batch.members])
                self._begin(batch)
            start = time.monotonic()
            with watchdog.PROCESS.waiting("model", f"a forward pass of {len(batch.members)} sequences"):
                results = run()
            seconds = time.monotonic() - start
            with self._lock:
                self._running = False
                self._admission.ended(batch.num_tokens, seconds)
                self._free.notify()
                if self._is_due():
                    self._due.notify()
            self._call_in_loop(self._deliver, batch, results, seconds)

    def _next_batch(self) -> Batch[_Item, _Result] | None:
        """Wait for the next batch; return None when the batcher closes."""
        while True:
            with self._lock:
                while not self._closing and not self._is_due():
                    self._due.wait()
                if self._closing:
                    return None
                batch, skipped = self._queue.take()
                self._admission.chosen(batch.num_tokens if batch else 0)
                self._count_queue()
            if skipped:
                self._call_in_loop(self._drop, skipped)
            if batch is not None:
                self._observe(batch)
                return batch

    def _is_due(self) -> bool:
        """Return whether to choose a batch now: the model is free, or a full batch is waiting."""
        tokens = self._queue.tokens
        return tokens > 0 and (not self._running or tokens >= self._section.max_batch_tokens)

    def _begin(self, batch: Batch[_Item, _Result]) -> None:
        """Wait until the model is free, then mark it as running."""
        with self._lock:
            while self._running:
                self._free.wait()
            self._running = True
            self._admission.begun(batch.num_tokens)
            self._count_queue()

    def _deliver(
        self, batch: Batch[_Item, _Result], results: Sequence[_Result | Exception], seconds: float
    ) -> None:
        now = time.monotonic()
        for sequence, result in zip(batch.members, results, strict=True):
            request = sequence.request
            if request.last_batch != batch.number:
                request.last_batch = batch.number
                request.compute_seconds += seconds
            if isinstance(result, Exception):
                request.fail(result)
                continue
            self._metrics.sequences.labels("scored").inc()
            request.results[sequence.index] = result
            request.missing -= 1
            if request.missing == 0:
                request.finish(now)

    def _drop(self, skipped: Sequence[QueuedSequence[_Item, _Result]]) -> None:
        now = time.monotonic()
        for sequence in skipped:
            request = sequence.request
            late = request.is_late(now) and not request.future.cancelled()
            self._metrics.sequences.labels("expired" if late else "cancelled").inc()
            if late:
                request.fail(DeadlineExceeded("the deadline passed while the request waited for the model"))

    def _observe(self, batch: Batch[_Item, _Result]) -> None:
        now = time.monotonic()
        for sequence in batch.members:
            self._metrics.wait_seconds.observe(now - sequence.request.arrived)
        self._metrics.batch_tokens.observe(batch.num_tokens)
        self._metrics.batch_fill_ratio.observe(batch.num_tokens / batch.computed_tokens)

    def _call_in_loop(self, function: Callable[..., None], *arguments: object) -> None:
        """Call the function in the event loop, unless the loop has closed because the process is ending."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            logger.debug("the event loop is closed: the results of a batch are dropped")


def isolate_failures(prepare: Prepare[_Item, _Result]) -> Prepare[_Item, _Result]:
    """Wrap `prepare` so that neither it nor the model raises: each item of a failed batch is retried by
    itself.

    An error then reaches only the callers of the items that cause it.
    """

    def prepare_isolated(items: Sequence[_Item]) -> Callable[[], Sequence[_Result | Exception]]:
        try:
            compute = prepare(items)
        except Exception as error:  # noqa: BLE001 - returned to the callers of the items
            failure = error
            return lambda: run_isolated(items, failure)

        def run() -> Sequence[_Result | Exception]:
            try:
                results = compute()
                if len(results) != len(items):
                    raise RuntimeError(f"the model returned {len(results)} results for {len(items)} items")
            except Unavailable as error:
                # There is no model any more to retry with.
                return [error] * len(items)
            except Exception as error:  # noqa: BLE001 - returned to the callers of the items
                return run_isolated(items, error)
            return results

        return run

    def run_isolated(items: Sequence[_Item], error: Exception) -> Sequence[_Result | Exception]:
        if len(items) == 1:
            return [error]
        logger.warning("a batch of %d items failed; retrying each item separately: %r", len(items), error)
        return [result for item in items for result in prepare_isolated([item])()]

    return prepare_isolated
