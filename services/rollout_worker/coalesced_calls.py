"""Coalesce the calls of several tasks into one RPC, and isolate items that kill a replica.

Sits between `ModelServices` and a client. An item is what one task sends: it is never divided, and only its
numbers of sequences and tokens are known here. When a replica dies during a call, the items are sent again in
an exclusive call; if a replica dies again, each item is sent in an exclusive call, so that the item at fault
is found and the others get their results.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from fairlead import tracing
from fairlead.backoff import Backoff, retry
from fairlead.errors import FairleadError, Overloaded, ReplicaLost, Transient, Unauthenticated, Unavailable

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

MAX_CALLS = 1
"""Calls in progress before items wait to be coalesced. A second one would halve the number of items in a
call, and cost more than the transit in which nothing is computed."""
LONGEST_WAIT_SECONDS = 0.05
"""Items that are not held wait at most this long, however many calls are in progress: slow services, and
several replicas, get parallel calls."""
MAX_SEQUENCES = 64
MAX_TOKENS = 65_536

_SPREAD_SECONDS = 0.5
_RESTART_SECONDS = 300.0
"""How long a replica may take to load its model again. If the task were released before, the worker that
claims it next would not know that it was part of a death, and no failure would ever be counted."""
_RETRY = Backoff(first_seconds=0.5, longest_seconds=0.5, jitter=0.0)

_NO_ITEMS_FAULT = (Transient, Unauthenticated)
"""Errors that no item causes; any other may be the fault of one item."""


_Item_contra = TypeVar("_Item_contra", contravariant=True)
_Result_co = TypeVar("_Result_co", covariant=True)


class BatchCall(Protocol[_Item_contra, _Result_co]):
    """Returns a result for each of several items, in order, or raises for all of them."""

    def __call__(self, items: Sequence[_Item_contra], *, exclusive: bool) -> Awaitable[Sequence[_Result_co]]:
        """Call the service; with `exclusive` the replica computes nothing else meanwhile.

        Raises:
            ReplicaLost: if the replica died during the call.
        """
        ...


@dataclass(slots=True, eq=False)
class _Waiting(Generic[_Item, _Result]):
    """An item that has not been sent yet."""

    item: _Item
    num_sequences: int
    num_tokens: int
    result: asyncio.Future[_Result]
    span: tracing.Span | None
    is_held: bool = False
    """It waits for further items, although a call could begin."""


class CoalescedCalls(Generic[_Item, _Result]):
    """Coalesces the calls of one method. Used within one event loop."""

    def __init__(
        self,
        call: BatchCall[_Item, _Result],
        *,
        name: str = "joined call",
        expects_more: Callable[[], bool] = lambda: False,
    ) -> None:
        """No call is made before the first item.

        Args:
            call: makes a call.
            name: of its spans.
            expects_more: returns whether further items will follow soon, so that it is worth holding some.
        """
        self._call = call
        self._name = name
        self._expects_more = expects_more
        self._waiting: deque[_Waiting[_Item, _Result]] = deque()
        self._in_progress: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    async def call(
        self,
        item: _Item,
        *,
        num_tokens: int,
        num_sequences: int = 1,
        exclusive: bool = False,
        hold_seconds: float = 0.0,
    ) -> _Result:
        """Return the result of one item, sent together with other items unless `exclusive`.

        Args:
            item: the item.
            num_tokens: its tokens.
            num_sequences: its sequences.
            exclusive: send it by itself.
            hold_seconds: it may be held this long until a call is full, while further items are expected.

        Raises:
            ReplicaLost: if a replica died while it computed only this item.
            FairleadError: as the call does. After an error that may be the fault of one item each item is
                sent in its own call, so that only that item fails.
        """
        if exclusive:
            [result] = await self._exclusive([item])
            return result
        loop = asyncio.get_running_loop()
        waiting = _Waiting[_Item, _Result](
            item, num_sequences, num_tokens, loop.create_future(), tracing.current()
        )
        waiting.is_held = hold_seconds > 0
        self._waiting.append(waiting)
        if self._holds():
            loop.call_later(hold_seconds, self._release, waiting)
        else:
            self._release(waiting)
        return await waiting.result

    def _holds(self) -> bool:
        """Return whether all items that wait are held, because a call of more of them is worth it."""
        return (
            all(waiting.is_held for waiting in self._waiting)
            and sum(waiting.num_sequences for waiting in self._waiting) < MAX_SEQUENCES
            and self._expects_more()
        )

    def _release(self, waiting: _Waiting[_Item, _Result]) -> None:
        """Hold an item no longer: it is sent as soon as a call may begin."""
        waiting.is_held = False
        if waiting not in self._waiting:
            return
        if len(self._in_progress) < MAX_CALLS:
            self._start()
        else:
            asyncio.get_running_loop().call_later(LONGEST_WAIT_SECONDS, self._start_if_waiting, waiting)

    async def _exclusive(self, items: Sequence[_Item]) -> Sequence[_Result]:
        """Make an exclusive call. One at a time: the others wait here, not at the replica."""
        async with self._turn:
            return await until_available(lambda: self._call(items, exclusive=True))

    def _start_if_waiting(self, waiting: _Waiting[_Item, _Result]) -> None:
        if waiting in self._waiting:
            self._start()

    def _start(self) -> None:
        # Items that arrive in the same turn of the loop are taken when the task begins.
        task = asyncio.create_task(self._send(), name="coalesced-call")
        self._in_progress.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._in_progress.discard(task)
        if self._waiting and len(self._in_progress) < MAX_CALLS and not self._holds():
            self._start()

    async def _send(self) -> None:
        batch = self._take()
        if not batch:
            return
        try:
            await self._send_batch(batch, exclusive=False)
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.result.cancel()
            raise

    async def _send_batch(self, batch: Sequence[_Waiting[_Item, _Result]], *, exclusive: bool) -> None:
        """Set the result or the error of every item whose caller still waits."""
        batch = [waiting for waiting in batch if not waiting.result.done()]
        if not batch:
            return
        items = [waiting.item for waiting in batch]
        try:
            with tracing.joined(
                self._name, [each.span for each in batch], attributes={"fairlead.tasks": len(batch)}
            ):
                results = await (self._exclusive(items) if exclusive else self._call(items, exclusive=False))
        except ReplicaLost as error:
            if exclusive and len(batch) == 1:
                _fail(batch, error)
                return
            logger.warning("sending %d items again in exclusive calls: %s", len(batch), error)
            # Most replicas die of something else: then one exclusive call is enough for all items.
            parts = [[waiting] for waiting in batch] if exclusive else [batch]
            for part in parts:
                await self._send_batch(part, exclusive=True)
        except Exception as error:  # noqa: BLE001 - raised to the callers
            if len(batch) == 1 or isinstance(error, _NO_ITEMS_FAULT):
                _fail(batch, error)
            else:
                await asyncio.gather(*(self._send_batch([waiting], exclusive=exclusive) for waiting in batch))
        else:
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.result.done():
                    waiting.result.set_result(result)

    def _take(self) -> list[_Waiting[_Item, _Result]]:
        batch: list[_Waiting[_Item, _Result]] = []
        sequences = tokens = 0
        while self._waiting:
            first = self._waiting[0]
            too_many = sequences + first.num_sequences > MAX_SEQUENCES
            if batch and (too_many or tokens + first.num_tokens > MAX_TOKENS):
                break
            self._waiting.popleft()
            if not first.result.done():  # else its caller was cancelled
                batch.append(first)
                sequences += first.num_sequences
                tokens += first.num_tokens
        return batch


def _fail(batch: Sequence[_Waiting[_Item, _Result]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.result.done():
            waiting.result.set_exception(error)


async def until_available(call: Callable[[], Awaitable[_T]]) -> _T:
    """Return the result of a call after a replica died, retried until a replica accepts it.

    Args:
        call: makes the call; called again while it is refused or no replica is there.

    Raises:
        ReplicaLost: if a replica died during the call.
        FairleadError: as the call does.
    """

    async def accepted() -> _T:
        return await retry(call, what="", on=Overloaded, backoff=_RETRY)

    def stop_if_lost(error: FairleadError) -> None:
        if isinstance(error, ReplicaLost):
            raise error

    # All calls that were in progress when a replica died wait for the next replica together.
    await asyncio.sleep(random.uniform(0.0, _SPREAD_SECONDS))
    return await retry(
        accepted,
        what="",
        on=Unavailable,
        backoff=_RETRY,
        deadline=time.monotonic() + _RESTART_SECONDS,
        on_wait=stop_if_lost,
    )
