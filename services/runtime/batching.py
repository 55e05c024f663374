"""The micro-batcher of reward and reference: sequences of all callers share forward passes.

Between a servicer and the function that runs the model. Knows nothing of what an item is but its number of
tokens. Work-conserving: what waits is taken when the model is free, so an idle server adds no delay.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Self, TypeVar

from fairlead import metrics
from fairlead.config.compute import BatchingSection
from fairlead.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

WINDOW_BATCHES = 16
"""Sorting looks this many batches ahead; benchmarks/batching.py."""
SMALL_TOKENS = 32
"""Sequences up to this length share a batch whatever their lengths; benchmarks/batching.py."""


@dataclass(slots=True, eq=False)
class _Request(Generic[_Result]):
    """What one caller waits for."""

    future: asyncio.Future[list[_Result]]
    results: list[_Result | None]
    missing: int
    deadline: float | None
    waiting_tokens: int


@dataclass(slots=True, eq=False)
class Waiting(Generic[_Item, _Result]):
    """One sequence in the queue."""

    item: _Item
    num_tokens: int
    request: _Request[_Result] = field(repr=False)
    index: int
    """Place in its request."""
    arrived: float


def pack(num_tokens: Sequence[int], *, max_batch_tokens: int) -> list[list[int]]:
    """Cuts sequences into batches of like length: the longest first, padding counted.

    A batch ends where one more sequence would exceed the budget, or would be less than half as long as the
    longest (so that less than half of a batch is padding), unless all are small.

    Args:
        num_tokens: length of each sequence, at least 1.
        max_batch_tokens: bound of count × longest; a longer sequence is a batch of its own.

    Returns:
        Indices into `num_tokens`, each once.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(num_tokens)), key=lambda index: -num_tokens[index]):
        like = longest <= SMALL_TOKENS or 2 * num_tokens[index] >= longest
        if batches and like and (len(batches[-1]) + 1) * longest <= max_batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = num_tokens[index]
    return batches


class MicroBatcher(Generic[_Item, _Result]):
    """Packs, runs and puts back in order. An async context manager; one per model."""

    def __init__(
        self,
        compute: Callable[[Sequence[_Item]], Sequence[_Result | Exception]],
        section: BatchingSection,
        *,
        batcher_metrics: metrics.Batcher,
        field_name: str,
    ) -> None:
        """
        Args:
            compute: runs one batch in the only model thread; one result for each item, or the error that is
                that item's alone. If it raises, every item is tried alone.
            section: limits.
            batcher_metrics: where to count.
            field_name: what the request calls its items, for messages.
        """
        self._compute = compute
        self._section = section
        self._metrics = batcher_metrics
        self._field_name = field_name
        self._queue: collections.deque[Waiting[_Item, _Result]] = collections.deque()
        self._queue_tokens = 0
        self._tokens_per_second = 0.0
        self._arrived = asyncio.Event()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="batcher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends after the batch that is running; what still waits fails as Unavailable."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        for waiting in self._queue:
            _fail(waiting.request, Unavailable("the service is stopping"))
        self._queue.clear()
        await asyncio.to_thread(self._executor.shutdown)

    @property
    def queue_tokens(self) -> int:
        """Tokens waiting."""
        return self._queue_tokens

    async def submit(
        self, items: Sequence[_Item], num_tokens: Sequence[int], *, deadline: float | None = None
    ) -> list[_Result]:
        """Results of the items, in order.

        Args:
            items: what to compute.
            num_tokens: length of each, at least 1.
            deadline: on the clock of `time.monotonic`; what has not begun by then is not begun.

        Raises:
            InvalidInput: if the items alone are more than the queue may hold.
            Overloaded: if they are now; says when there will be room, by the throughput measured.
            DeadlineExceeded: if the deadline passed before the model was free.
            Unavailable: if the batcher is closed.
        """
        if self._task is None or self._closing:
            raise Unavailable("the service is stopping")
        total = sum(num_tokens)
        self._check_room(len(items), total)
        if not items:
            return []
        now = time.monotonic()
        request = _Request[_Result](
            future=asyncio.get_running_loop().create_future(),
            results=[None] * len(items),
            missing=len(items),
            deadline=deadline,
            waiting_tokens=total,
        )
        for index, (item, length) in enumerate(zip(items, num_tokens, strict=True)):
            self._queue.append(Waiting(item, length, request, index, now))
        self._count(total)
        self._arrived.set()
        try:
            return await request.future
        finally:
            # The caller left, or one of its sequences failed: the others are not computed.
            self._count(-request.waiting_tokens)
            request.waiting_tokens = 0

    def _check_room(self, count: int, total: int) -> None:
        limit = self._section.max_queue_tokens
        if total > limit:
            raise InvalidInput(
                self._field_name, got=f"{total} tokens", allowed=f"at most {limit} tokens in one request"
            )
        if self._queue_tokens + total > limit:
            self._metrics.sequences.labels("refused").inc(count)
            speed = self._tokens_per_second
            wait = min(30.0, max(0.05, total / speed)) if speed else 1.0
            raise Overloaded(
                f"{self._queue_tokens} tokens are waiting, at most {limit} may", retry_after_seconds=wait
            )

    def _count(self, tokens: int) -> None:
        self._queue_tokens += tokens
        self._metrics.queue_tokens.set(self._queue_tokens)

    async def _run(self) -> None:
        while not self._closing:
            batch = self._take()
            if not batch:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            self._observe(batch)
            start = time.monotonic()
            results = await self._compute_batch([waiting.item for waiting in batch])
            for waiting, result in zip(batch, results, strict=True):
                self._deliver(waiting, result)
            self._learn_speed(sum(waiting.num_tokens for waiting in batch), time.monotonic() - start)

    def _take(self) -> list[Waiting[_Item, _Result]]:
        """The batch that holds the oldest sequence; nobody waits forever for others of its length."""
        budget = self._section.max_batch_tokens
        window: list[Waiting[_Item, _Result]] = []
        window_tokens = 0
        while self._queue and (not window or window_tokens < WINDOW_BATCHES * budget):
            waiting = self._queue.popleft()
            if self._is_alive(waiting):
                window.append(waiting)
                window_tokens += waiting.num_tokens
        if not window:
            return []
        batches = pack([waiting.num_tokens for waiting in window], max_batch_tokens=budget)
        chosen = next(batch for batch in batches if 0 in batch)
        taken = set(chosen)
        self._queue.extendleft(w for i, w in reversed(list(enumerate(window))) if i not in taken)
        batch = [window[index] for index in chosen]
        for waiting in batch:
            waiting.request.waiting_tokens -= waiting.num_tokens
        self._count(-sum(waiting.num_tokens for waiting in batch))
        return batch

    def _is_alive(self, waiting: Waiting[_Item, _Result]) -> bool:
        request = waiting.request
        if request.future.done():
            self._metrics.sequences.labels("cancelled").inc()
            return False
        if request.deadline is not None and request.deadline <= time.monotonic():
            self._metrics.sequences.labels("expired").inc()
            _fail(request, DeadlineExceeded("the deadline passed while the request waited for the model"))
            return False
        return True

    async def _compute_batch(self, items: Sequence[_Item]) -> Sequence[_Result | Exception]:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._executor, self._compute, items)
            if len(results) != len(items):
                raise RuntimeError(f"the model gave {len(results)} results for {len(items)} items")
            return results
        except Exception as error:  # noqa: BLE001 - handed to the callers it belongs to
            if len(items) == 1:
                return [error]
            logger.warning("a batch of %d failed, each is tried alone: %r", len(items), error)
        return [result for item in items for result in await self._compute_batch([item])]

    def _deliver(self, waiting: Waiting[_Item, _Result], result: _Result | Exception) -> None:
        request = waiting.request
        if isinstance(result, Exception):
            _fail(request, result)
            return
        self._metrics.sequences.labels("scored").inc()
        request.results[waiting.index] = result
        request.missing -= 1
        if request.missing == 0 and not request.future.done():
            request.future.set_result(_complete(request.results))

    def _observe(self, batch: Sequence[Waiting[_Item, _Result]]) -> None:
        now = time.monotonic()
        for waiting in batch:
            self._metrics.wait_seconds.observe(now - waiting.arrived)
        real = sum(waiting.num_tokens for waiting in batch)
        longest = max(waiting.num_tokens for waiting in batch)
        self._metrics.batch_tokens.observe(real)
        self._metrics.batch_fill_ratio.observe(real / (len(batch) * longest))

    def _learn_speed(self, tokens: int, seconds: float) -> None:
        speed = tokens / max(seconds, 1e-6)
        self._tokens_per_second = (
            0.8 * self._tokens_per_second + 0.2 * speed if self._tokens_per_second else speed
        )


def _fail(request: _Request[_Result], error: Exception) -> None:
    if not request.future.done():
        request.future.set_exception(error)


def _complete(results: Iterable[_Result | None]) -> list[_Result]:
    return [result for result in results if result is not None]
