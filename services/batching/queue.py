"""The queue of the micro-batcher: what waits, in two lanes, and what becomes of those who no longer wait.

Not for several threads at a time: the batcher holds its lock around every call. Knows no model.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fairlead.types import Priority
from services.batching.packing import Chosen, Packing

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Answer(Generic[_Result]):
    """Results of one request."""

    results: list[_Result]
    """In the order of its items."""
    queue_seconds: float
    """Time that it waited for the model."""
    compute_seconds: float
    """Time that the model took for the batches it was in."""


@dataclass(slots=True, eq=False)
class Request(Generic[_Result]):
    """What one caller waits for."""

    future: asyncio.Future[Answer[_Result]]
    results: list[_Result | None]
    missing: int
    deadline: float | None
    priority: Priority
    arrived: float
    waiting_tokens: int
    """Of its sequences that no batch has taken."""
    compute_seconds: float = 0.0
    last_batch: int = -1
    """Number of the newest batch it was in, so that each counts once."""

    def is_late(self, now: float) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and self.deadline <= now

    def fail(self, error: Exception) -> None:
        """Ends it, if nothing else has."""
        if not self.future.done():
            self.future.set_exception(error)

    def answer(self, now: float) -> Answer[_Result]:
        """All results, once none is missing."""
        results = [result for result in self.results if result is not None]
        waited = max(0.0, now - self.arrived - self.compute_seconds)
        return Answer(results, waited, self.compute_seconds)


@dataclass(slots=True, eq=False)
class Waiting(Generic[_Item, _Result]):
    """One sequence in the queue."""

    item: _Item
    num_tokens: int
    request: Request[_Result] = field(repr=False)
    index: int
    """Place in its request."""


@dataclass(frozen=True, slots=True)
class Batch(Generic[_Item, _Result]):
    """Sequences that share a forward pass."""

    number: int
    """Counts up."""
    members: Sequence[Waiting[_Item, _Result]]
    computed_tokens: int
    """Padding included, what is shared once."""

    @property
    def num_tokens(self) -> int:
        """Real tokens."""
        return sum(member.num_tokens for member in self.members)


class WaitingQueue(Generic[_Item, _Result]):
    """Two lanes, each first come first served but for who shares a batch with the oldest.

    Online goes before bulk. Bulk that waits gets a batch of its own whenever it has had none for
    `bulk_patience_seconds`: a steady stream of online requests slows it down and never stops it.
    """

    def __init__(
        self, packing: Packing[_Item], *, max_batch_tokens: int, bulk_patience_seconds: float
    ) -> None:
        self._packing = packing
        self._max_batch_tokens = max_batch_tokens
        self._bulk_patience_seconds = bulk_patience_seconds
        self._lanes: dict[Priority, collections.deque[Waiting[_Item, _Result]]] = {
            priority: collections.deque() for priority in Priority
        }
        self._tokens = dict.fromkeys(Priority, 0)
        self._bulk_since = 0.0
        self._numbers = itertools.count()

    @property
    def tokens(self) -> int:
        """Tokens waiting."""
        return sum(self._tokens.values())

    def tokens_of(self, priority: Priority) -> int:
        """Tokens waiting in one lane."""
        return self._tokens[priority]

    def add(self, request: Request[_Result], items: Sequence[_Item], num_tokens: Sequence[int]) -> None:
        """Puts the sequences of a request at the end of its lane."""
        lane = self._lanes[request.priority]
        if request.priority is Priority.BULK and not lane:
            self._bulk_since = request.arrived
        for index, (item, length) in enumerate(zip(items, num_tokens, strict=True)):
            lane.append(Waiting(item, length, request, index))
        self._tokens[request.priority] += request.waiting_tokens

    def forget(self, request: Request[_Result]) -> None:
        """The request no longer counts: it was answered, or its caller left."""
        self._tokens[request.priority] -= request.waiting_tokens
        request.waiting_tokens = 0

    def take(self) -> tuple[Batch[_Item, _Result] | None, list[Waiting[_Item, _Result]]]:
        """The next batch, if there is one, and the sequences passed over: left by their callers, or late."""
        now = time.monotonic()
        passed: list[Waiting[_Item, _Result]] = []
        for priority in self._order(now):
            window = self._window(self._lanes[priority], now, passed)
            if not window:
                continue
            chosen = self._packing.choose(
                [waiting.item for waiting in window],
                [waiting.num_tokens for waiting in window],
                max_batch_tokens=self._max_batch_tokens,
            )
            if priority is Priority.BULK:
                self._bulk_since = now
            return self._split(self._lanes[priority], window, chosen), passed
        return None, passed

    def drain(self) -> Iterator[Waiting[_Item, _Result]]:
        """Empties both lanes."""
        for lane in self._lanes.values():
            while lane:
                waiting = lane.popleft()
                self.forget(waiting.request)
                yield waiting

    def _order(self, now: float) -> tuple[Priority, Priority]:
        overdue = now - self._bulk_since >= self._bulk_patience_seconds
        if overdue and self._lanes[Priority.BULK]:
            return Priority.BULK, Priority.ONLINE
        return Priority.ONLINE, Priority.BULK

    def _window(
        self,
        lane: collections.deque[Waiting[_Item, _Result]],
        now: float,
        passed: list[Waiting[_Item, _Result]],
    ) -> list[Waiting[_Item, _Result]]:
        """The oldest of a lane that somebody waits for; they are out of it."""
        window: list[Waiting[_Item, _Result]] = []
        tokens, enough = 0, self._packing.window_batches * self._max_batch_tokens
        while lane and (not window or tokens < enough):
            waiting = lane.popleft()
            if waiting.request.future.done() or waiting.request.is_late(now):
                passed.append(waiting)
                continue
            window.append(waiting)
            tokens += waiting.num_tokens
        return window

    def _split(
        self,
        lane: collections.deque[Waiting[_Item, _Result]],
        window: Sequence[Waiting[_Item, _Result]],
        chosen: Chosen,
    ) -> Batch[_Item, _Result]:
        """The chosen ones as a batch; the others back to where they were."""
        taken = set(chosen.indices)
        lane.extendleft(w for index, w in reversed(list(enumerate(window))) if index not in taken)
        members = [window[index] for index in chosen.indices]
        for member in members:
            member.request.waiting_tokens -= member.num_tokens
            self._tokens[member.request.priority] -= member.num_tokens
        return Batch(next(self._numbers), members, chosen.computed_tokens)
