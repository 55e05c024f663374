"""The queue of the micro-batcher: admission, two lanes by priority, and the choice of the next batch.

Not thread-safe: the batcher holds its lock around every call. Knows nothing about models; computing times are
reported by the batcher.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fairlead.config.serving import BatchingSection
from fairlead.errors import InvalidInput, Overloaded
from fairlead.types import Priority
from services.batching.packing import Chosen, Packing

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

MAX_BULK_WAIT_SECONDS = 1.0
"""Bulk requests get a batch at least this often, however many online requests arrive."""
_SPEED_DECAY = 0.8
"""Weight of the previous estimate when a batch updates the speed."""
_MIN_MEASURED_SHARE = 0.125
"""Smallest batch that updates the speed, as a share of a full one."""
_LONGEST_DELAY_SECONDS = 30.0
_SHORTEST_DELAY_SECONDS = 0.05
_BULK_SHARE = 0.5
"""Share of the queue that bulk requests may fill; the rest is reserved for online requests."""


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[_Result]):
    """Results and timing of one request."""

    results: list[_Result]
    """One result for each item, in order."""
    queue_seconds: float
    """Time spent waiting for the model."""
    compute_seconds: float
    """Time spent in the forward passes that the request was part of."""


@dataclass(slots=True, eq=False)
class QueuedRequest(Generic[_Result]):
    """One caller's request."""

    future: asyncio.Future[BatchResult[_Result]]
    results: list[_Result | None]
    missing: int
    """Results that have not been computed yet."""
    deadline: float | None
    priority: Priority
    arrived: float
    waiting_tokens: int
    """Tokens of sequences that no batch has taken yet."""
    compute_seconds: float = 0.0
    last_batch: int = -1
    """Number of the latest batch that the request was part of, so that each batch's time counts once."""

    def is_late(self, now: float) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and self.deadline <= now

    def fail(self, error: Exception) -> None:
        """Fail the request unless it has already ended."""
        if not self.future.done():
            self.future.set_exception(error)

    def finish(self, now: float) -> None:
        """Resolve the future with the results, unless the request has already ended."""
        if not self.future.done():
            results = [result for result in self.results if result is not None]
            waited = max(0.0, now - self.arrived - self.compute_seconds)
            self.future.set_result(BatchResult(results, waited, self.compute_seconds))


@dataclass(slots=True, eq=False)
class QueuedSequence(Generic[_Item, _Result]):
    """One sequence in the queue."""

    item: _Item
    num_tokens: int
    request: QueuedRequest[_Result] = field(repr=False)
    index: int
    """Index in its request."""


@dataclass(frozen=True, slots=True)
class Batch(Generic[_Item, _Result]):
    """Sequences that share a forward pass."""

    number: int
    """Sequence number, counting up."""
    members: Sequence[QueuedSequence[_Item, _Result]]
    computed_tokens: int
    """Tokens that the model computes: padding included, a shared prefix counted once."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences, without padding."""
        return sum(member.num_tokens for member in self.members)


class BatchQueue(Generic[_Item, _Result]):
    """Two lanes, first come first served except for sequences that share a batch with the oldest.

    Online requests go before bulk requests. If no bulk batch was taken for `max_bulk_wait_seconds`, waiting
    bulk requests get the next batch: a steady stream of online requests slows bulk down but never stops it.
    """

    def __init__(
        self, packing: Packing[_Item], *, max_batch_tokens: int, max_bulk_wait_seconds: float
    ) -> None:
        self._packing = packing
        self._max_batch_tokens = max_batch_tokens
        self._max_bulk_wait_seconds = max_bulk_wait_seconds
        self._lanes: dict[Priority, collections.deque[QueuedSequence[_Item, _Result]]] = {
            priority: collections.deque() for priority in Priority
        }
        self._tokens = dict.fromkeys(Priority, 0)
        self._last_bulk_batch = 0.0
        self._numbers = itertools.count()

    @property
    def tokens(self) -> int:
        """Tokens waiting in both lanes."""
        return sum(self._tokens.values())

    def tokens_of(self, priority: Priority) -> int:
        """Return the tokens waiting in one lane."""
        return self._tokens[priority]

    def add(self, request: QueuedRequest[_Result], items: Sequence[_Item], num_tokens: Sequence[int]) -> None:
        """Append the sequences of a request to its lane."""
        lane = self._lanes[request.priority]
        if request.priority is Priority.BULK and not lane:
            self._last_bulk_batch = request.arrived
        for index, (item, length) in enumerate(zip(items, num_tokens, strict=True)):
            lane.append(QueuedSequence(item, length, request, index))
        self._tokens[request.priority] += request.waiting_tokens

    def forget(self, request: QueuedRequest[_Result]) -> None:
        """Stop counting a request that has ended; `take` skips its sequences."""
        self._tokens[request.priority] -= request.waiting_tokens
        request.waiting_tokens = 0

    def take(self) -> tuple[Batch[_Item, _Result] | None, list[QueuedSequence[_Item, _Result]]]:
        """Return the next batch, if any, and the sequences that were skipped as cancelled or late."""
        now = time.monotonic()
        skipped: list[QueuedSequence[_Item, _Result]] = []
        for priority in self._order(now):
            window = self._window(self._lanes[priority], now, skipped)
            if not window:
                continue
            chosen = self._packing.choose(
                [sequence.item for sequence in window],
                [sequence.num_tokens for sequence in window],
                max_batch_tokens=self._max_batch_tokens,
            )
            if priority is Priority.BULK:
                self._last_bulk_batch = now
            return self._split(self._lanes[priority], window, chosen), skipped
        return None, skipped

    def drain(self) -> Iterator[QueuedSequence[_Item, _Result]]:
        """Empty both lanes and yield their sequences."""
        for lane in self._lanes.values():
            while lane:
                sequence = lane.popleft()
                self.forget(sequence.request)
                yield sequence

    def _order(self, now: float) -> tuple[Priority, Priority]:
        overdue = now - self._last_bulk_batch >= self._max_bulk_wait_seconds
        if overdue and self._lanes[Priority.BULK]:
            return Priority.BULK, Priority.ONLINE
        return Priority.ONLINE, Priority.BULK

    def _window(
        self,
        lane: collections.deque[QueuedSequence[_Item, _Result]],
        now: float,
        skipped: list[QueuedSequence[_Item, _Result]],
    ) -> list[QueuedSequence[_Item, _Result]]:
        """Remove the oldest pending sequences from a lane, up to the size of the packing window."""
        window: list[QueuedSequence[_Item, _Result]] = []
        tokens = 0
        enough = self._packing.window_batches * self._max_batch_tokens
        while lane and (not window or tokens < enough):
            sequence = lane.popleft()
            if sequence.request.future.done() or sequence.request.is_late(now):
                skipped.append(sequence)
                continue
            window.append(sequence)
            tokens += sequence.num_tokens
        return window

    def _split(
        self,
        lane: collections.deque[QueuedSequence[_Item, _Result]],
        window: Sequence[QueuedSequence[_Item, _Result]],
        chosen: Chosen,
    ) -> Batch[_Item, _Result]:
        """Make a batch of the chosen sequences and put the others back at the front of the lane, in order."""
        taken = set(chosen.indices)
        lane.extendleft(s for index, s in reversed(list(enumerate(window))) if index not in taken)
        members = [window[index] for index in chosen.indices]
        for member in members:
            member.request.waiting_tokens -= member.num_tokens
            self._tokens[member.request.priority] -= member.num_tokens
        return Batch(next(self._numbers), members, chosen.computed_tokens)


class Speed:
    """Tokens per second of recent large batches.

    A small batch takes the fixed time of a call regardless of its tokens, so it is not measured. A queue with
    many tokens produces large batches, so the estimate exists when it is needed.
    """

    def __init__(self, *, max_batch_tokens: int) -> None:
        self._min_tokens = max_batch_tokens * _MIN_MEASURED_SHARE
        self._tokens_per_second = 0.0

    def learn(self, tokens: int, seconds: float) -> None:
        """Update the estimate with one computed batch."""
        if tokens < self._min_tokens:
            return
        measured = tokens / max(seconds, 1e-6)
        known = self._tokens_per_second
        self._tokens_per_second = _SPEED_DECAY * known + (1 - _SPEED_DECAY) * measured if known else measured

    def seconds(self, tokens: int) -> float:
        """Return the expected time to compute a number of tokens; 0 before the first measurement."""
        return tokens / self._tokens_per_second if self._tokens_per_second else 0.0


class Admission:
    """Refuses requests that exceed the queue's token limit or would wait too long. Not thread-safe."""

    def __init__(self, section: BatchingSection, *, field_name: str) -> None:
        self._section = section
        self._field_name = field_name
        self._speed = Speed(max_batch_tokens=section.max_batch_tokens)
        self._running: tuple[float, float] | None = None
        self.chosen_tokens = 0
        """Tokens of the batch that has left the queue and waits for the model."""

    def chosen(self, tokens: int) -> None:
        """Record that a batch has left the queue and waits for the model."""
        self.chosen_tokens = tokens

    def begun(self, tokens: int) -> None:
        """Record that the model has started a batch."""
        self.chosen_tokens = 0
        self._running = (time.monotonic(), self._speed.seconds(tokens))

    def ended(self, tokens: int, seconds: float) -> None:
        """Record that the model has finished a batch."""
        self._running = None
        self._speed.learn(tokens, seconds)

    def wait_seconds(self, waiting_tokens: int) -> float:
        """Return how long a request waits for the model if this many tokens are queued before it."""
        wait = self._speed.seconds(self.chosen_tokens)
        if self._running is not None:
            begun, expected = self._running
            wait += max(0.0, begun + expected - time.monotonic())
        return wait + self._speed.seconds(waiting_tokens)

    def check(self, total: int, priority: Priority, *, online_tokens: int, bulk_tokens: int) -> None:
        """Check whether a request of `total` tokens may join the queue.

        Raises:
            InvalidInput: if the request by itself exceeds the limit of the queue.
            Overloaded: if the queue is full or the wait too long; has the delay before the next attempt.
        """
        section = self._section
        bulk = priority is Priority.BULK
        limit = int(section.max_queue_tokens * _BULK_SHARE) if bulk else section.max_queue_tokens
        if total > limit:
            raise InvalidInput(
                self._field_name, got=f"{total} tokens", allowed=f"at most {limit} tokens in one request"
            )
        waiting = bulk_tokens if bulk else online_tokens + bulk_tokens
        if waiting + total > limit:
            excess = self._speed.seconds(waiting + total - limit) or 1.0
            raise Overloaded(
                f"the queue is full: {waiting} tokens are waiting, the limit is {limit}",
                retry_after_seconds=_delay(excess),
            )
        # An empty queue accepts any request, so that one long batch causes no refusals. Bulk has no time
        # limit.
        if bulk or not online_tokens:
            return
        wait = self.wait_seconds(online_tokens)
        if wait > section.max_queue_seconds:
            raise Overloaded(
                f"the request would wait {wait:.3g} s, the limit is {section.max_queue_seconds:g} s",
                retry_after_seconds=_delay(wait - section.max_queue_seconds),
            )


def _delay(seconds: float) -> float:
    return round(min(_LONGEST_DELAY_SECONDS, max(_SHORTEST_DELAY_SECONDS, seconds)), 3)
