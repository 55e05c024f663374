"""The micro-batcher of reward and reference: sequences of all callers share forward passes.

Between a servicer and the function that runs the model. Knows nothing of what an item is but its number of
tokens. Work-conserving: what waits is taken when the model is free, so an idle server adds no delay.

Two threads take turns. One runs the model while the other chooses the next batch and builds its tensors, once
a full one waits; with less it waits for the model, as more may come. Neither waits for the event loop.
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
from services.batching.admission import Admission
from services.batching.isolation import Careful, Compute, Prepare
from services.batching.packing import Packing, PaddedPacking
from services.batching.queue import Answer, Batch, Request, Waiting, WaitingQueue

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class MicroBatcher(Generic[_Item, _Result]):
    """Packs, runs and puts back in order. An async context manager; one per model."""

    def __init__(
        self,
        compute: Compute[_Item, _Result],
        section: BatchingSection,
        *,
        batcher_metrics: metrics.Batcher,
        field_name: str,
        prepare: Prepare[_Item, _Result] | None = None,
        packing: Packing[_Item] | None = None,
    ) -> None:
        """
        Args:
            compute: runs one batch; never two at a time. If it raises, every item is tried alone.
            section: limits.
            batcher_metrics: where to count.
            field_name: what the request calls its items, for messages.
            prepare: builds what `compute` would run, while another batch runs; None: nothing is to be built.
            packing: chooses batches; None: those of like length.
        """
        self._model = Careful(prepare or (lambda items: lambda: compute(items)))
        self._section = section
        self._metrics = batcher_metrics
        self._admission = Admission(section, field_name=field_name)
        self._queue = WaitingQueue[_Item, _Result](
            packing or PaddedPacking[_Item](),
            max_batch_tokens=section.max_batch_tokens,
            bulk_patience_seconds=section.bulk_patience_seconds,
        )
        # Guards the queue, admission and the two flags. Each condition has one who waits for it, and is told
        # only of what it waits for: to wake a thread in vain costs as much as to take a request.
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
        """Ends after the batch that is running; what still waits fails as Unavailable."""
        with self._lock:
            self._closing = True
            self._due.notify()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        with self._lock:
            left = list(self._queue.drain())
            self._count_queue()
        for waiting in left:
            waiting.request.fail(Unavailable("the service is stopping"))

    @property
    def queue_tokens(self) -> int:
        """Tokens waiting, those of a batch that waits for the model among them."""
        return self._queue.tokens + self._admission.chosen_tokens

    async def submit(
        self,
        items: Sequence[_Item],
        num_tokens: Sequence[int],
        *,
        deadline: float | None = None,
        priority: Priority = Priority.ONLINE,
    ) -> list[_Result]:
        """Results of the items, in order; as `answer`."""
        answer = await self.answer(items, num_tokens, deadline=deadline, priority=priority)
        return answer.results

    async def answer(
        self,
        items: Sequence[_Item],
        num_tokens: Sequence[int],
        *,
        deadline: float | None = None,
        priority: Priority = Priority.ONLINE,
    ) -> Answer[_Result]:
        """Results of the items, in order, with what they waited and took.

        Args:
            items: what to compute.
            num_tokens: length of each, at least 1.
            deadline: on the clock of `time.monotonic`; what has not begun by then is not begun.
            priority: online goes before bulk.

        Raises:
            InvalidInput: if the items alone are more than the queue may hold.
            Overloaded: if they are now, or would wait too long; says when there will be room.
            DeadlineExceeded: if the deadline passed before the model was free.
            Unavailable: if the batcher is closed.
        """
        if self._closing:
            raise Unavailable("the service is stopping")
        total = sum(num_tokens)
        request = Request[_Result](
            future=asyncio.get_running_loop().create_future(),
            results=[None] * len(items),
            missing=len(items),
            deadline=deadline,
            priority=priority,
            arrived=time.monotonic(),
            waiting_tokens=total,
        )
        with self._lock:
            self._check_room(len(items), total, priority)
            if not items:
                return Answer([], 0.0, 0.0)
            self._queue.add(request, items, num_tokens)
            self._count_queue()
            if self._is_due():
                self._due.notify()
        try:
            return await request.future
        finally:
            # The caller left, or one of its sequences failed: the others are not computed.
            with self._lock:
                self._queue.forget(request)
                self._count_queue()

    def _check_room(self, count: int, total: int, priority: Priority) -> None:
        online, bulk = (self._queue.tokens_of(lane) for lane in (Priority.ONLINE, Priority.BULK))
        try:
            self._admission.check(total, priority, online_tokens=online, bulk_tokens=bulk)
        except Overloaded:
            self._metrics.sequences.labels("refused").inc(count)
            raise

    def _count_queue(self) -> None:
        # Several batchers share the metric while a model is being replaced.
        tokens = self.queue_tokens
        self._metrics.queue_tokens.inc(tokens - self._counted_tokens)
        self._counted_tokens = tokens

    def _work(self) -> None:
        """A thread's life: its turn to choose and prepare, then the model, then the answers."""
        while True:
            with self._turn:
                batch = self._next_batch()
                if batch is None:
                    return
                runs = self._model.prepared([member.item for member in batch.members])
                self._begin(batch)
            start = time.monotonic()
            with watchdog.PROCESS.waiting("model", f"a forward pass of {len(batch.members)} sequences"):
                results = runs()
            seconds = time.monotonic() - start
            with self._lock:
                self._running = False
                self._admission.ended(batch.num_tokens, seconds)
                self._free.notify()
                if self._is_due():
                    self._due.notify()
            self._call(self._deliver, batch, results, seconds)

    def _next_batch(self) -> Batch[_Item, _Result] | None:
        """Waits for one; None when the batcher closes."""
        while True:
            with self._lock:
                while not self._closing and not self._is_due():
                    self._due.wait()
                if self._closing:
                    return None
                batch, passed = self._queue.take()
                self._admission.chosen(batch.num_tokens if batch else 0)
                self._count_queue()
            if passed:
                self._call(self._drop, passed)
            if batch is not None:
                self._observe(batch)
                return batch

    def _is_due(self) -> bool:
        """Whether to choose now: the model is free, or nothing that may still come could join the batch."""
        tokens = self._queue.tokens
        return tokens > 0 and (not self._running or tokens >= self._section.max_batch_tokens)

    def _begin(self, batch: Batch[_Item, _Result]) -> None:
        """Waits for the model to be free, and takes it."""
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
        for waiting, result in zip(batch.members, results, strict=True):
            request = waiting.request
            if request.last_batch != batch.number:
                request.last_batch = batch.number
                request.compute_seconds += seconds
            if isinstance(result, Exception):
                request.fail(result)
                continue
            self._metrics.sequences.labels("scored").inc()
            request.results[waiting.index] = result
            request.missing -= 1
            if request.missing == 0 and not request.future.done():
                request.future.set_result(request.answer(now))

    def _drop(self, passed: Sequence[Waiting[_Item, _Result]]) -> None:
        now = time.monotonic()
        for waiting in passed:
            request = waiting.request
            late = request.is_late(now) and not request.future.cancelled()
            self._metrics.sequences.labels("expired" if late else "cancelled").inc()
            if late:
                request.fail(DeadlineExceeded("the deadline passed while the request waited for the model"))

    def _observe(self, batch: Batch[_Item, _Result]) -> None:
        now = time.monotonic()
        for waiting in batch.members:
            self._metrics.wait_seconds.observe(now - waiting.request.arrived)
        self._metrics.batch_tokens.observe(batch.num_tokens)
        self._metrics.batch_fill_ratio.observe(batch.num_tokens / batch.computed_tokens)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        """In the event loop, which may be gone when the process ends."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            logger.debug("the event loop is closed: nobody waits for this batch")
