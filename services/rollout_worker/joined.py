"""Calls of tasks that end together become one: a call costs a service more than a small model's answer does.

Between the peers and a client. Knows neither messages nor what an item is, only how many tokens it holds.
Items whose replica died go again without those of others, and if it dies again each by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from fairlead.errors import (
    DeadlineExceeded,
    Overloaded,
    ReplicaLost,
    StaleWeights,
    Unauthenticated,
    Unavailable,
)
from services.rollout_worker.solo import solo

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

CALLS_AT_ONCE = 2
"""Calls under way before items wait for one another: one is answered while the next is on its way."""
LONGEST_WAIT_SECONDS = 0.01
"""Then what waits goes, however many calls are under way: slow services are asked in parallel."""
MAX_ITEMS = 64
MAX_TOKENS = 65_536

_OF_THE_SERVICE = (Unavailable, Overloaded, DeadlineExceeded, StaleWeights, Unauthenticated)
"""Errors that no item brings about; any other may be one item's fault."""


_Item_contra = TypeVar("_Item_contra", contravariant=True)
_Result_co = TypeVar("_Result_co", covariant=True)


class Call(Protocol[_Item_contra, _Result_co]):
    """Answers several items with as many results, in order, or raises for all of them."""

    def __call__(self, items: Sequence[_Item_contra], *, exclusive: bool) -> Awaitable[Sequence[_Result_co]]:
        """`alone`: nothing else is computed while this is. Raises ReplicaLost if a replica dies under it."""
        ...


@dataclass(slots=True, eq=False)
class _Waiting(Generic[_Item, _Result]):
    """An item that is not on its way yet."""

    item: _Item
    num_tokens: int
    answer: asyncio.Future[_Result]


class JoinedCalls(Generic[_Item, _Result]):
    """One kind of call. Belongs to the event loop that asks."""

    def __init__(self, call: Call[_Item, _Result]) -> None:
        """Nothing is called yet."""
        self._call = call
        self._waiting: deque[_Waiting[_Item, _Result]] = deque()
        self._under_way: set[asyncio.Task[None]] = set()

    async def ask(self, item: _Item, *, num_tokens: int, exclusive: bool = False) -> _Result:
        """The result of one item, asked for with those that wait beside it, or alone.

        Raises:
            ReplicaLost: if a replica died while it computed nothing but this.
            FairleadError: as the call does; after an error that may be one item's fault every item is asked
                for by itself, so that nobody pays for a neighbour.
        """
        if exclusive:
            [result] = await solo(lambda: self._call([item], exclusive=True))
            return result
        loop = asyncio.get_running_loop()
        waiting = _Waiting[_Item, _Result](item, num_tokens, loop.create_future())
        self._waiting.append(waiting)
        if len(self._under_way) < CALLS_AT_ONCE:
            self._start()
        else:
            loop.call_later(LONGEST_WAIT_SECONDS, self._start_if_waiting, waiting)
        return await waiting.answer

    def _start_if_waiting(self, waiting: _Waiting[_Item, _Result]) -> None:
        if waiting in self._waiting:
            self._start()

    def _start(self) -> None:
        # What else arrives in this turn of the loop is on board when the task begins.
        task = asyncio.create_task(self._send(), name="joined-call")
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if self._waiting and len(self._under_way) < CALLS_AT_ONCE:
            self._start()

    async def _send(self) -> None:
        batch = self._take()
        if not batch:
            return
        try:
            await self._try(batch, exclusive=False)
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.answer.cancel()
            raise

    async def _try(self, batch: Sequence[_Waiting[_Item, _Result]], *, exclusive: bool) -> None:
        """Answers everybody in the batch who has not left."""
        batch = [waiting for waiting in batch if not waiting.answer.done()]
        if not batch:
            return
        items = [waiting.item for waiting in batch]
        try:
            results = await (
                solo(lambda: self._call(items, exclusive=True))
                if exclusive
                else self._call(items, exclusive=False)
            )
        except ReplicaLost as error:
            if exclusive and len(batch) == 1:
                _fail(batch, error)
                return
            logger.warning("%d items are tried again alone: %s", len(batch), error)
            # Mostly a replica dies of something else: then all of them need but one call.
            parts = [[waiting] for waiting in batch] if exclusive else [batch]
            for part in parts:
                await self._try(part, exclusive=True)
        except Exception as error:  # noqa: BLE001 - handed to those who asked
            if len(batch) == 1 or isinstance(error, _OF_THE_SERVICE):
                _fail(batch, error)
            else:
                await asyncio.gather(*(self._try([waiting], exclusive=exclusive) for waiting in batch))
        else:
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(result)

    def _take(self) -> list[_Waiting[_Item, _Result]]:
        batch: list[_Waiting[_Item, _Result]] = []
        tokens = 0
        while self._waiting and len(batch) < MAX_ITEMS:
            if batch and tokens + self._waiting[0].num_tokens > MAX_TOKENS:
                break
            waiting = self._waiting.popleft()
            if not waiting.answer.done():  # who asked has left
                batch.append(waiting)
                tokens += waiting.num_tokens
        return batch


def _fail(batch: Sequence[_Waiting[_Item, _Result]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
