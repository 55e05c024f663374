"""The blocking clients: the asynchronous clients, run by an event loop in a background thread.

This also works where an event loop runs already, such as in a notebook. Knows nothing about services.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

from fairlead.clients.client import AsyncClient, ClientOptions

_T = TypeVar("_T")
_Client = TypeVar("_Client", bound="AsyncClient[Any]")


class _Loop:
    """The event loop of all blocking clients, for the life of the process.

    gRPC wakes every loop that uses it for every event, and logs errors for events of a closed loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        # A forked process has the loop, but not the thread that runs it; another thread may hold the lock.
        os.register_at_fork(after_in_child=self._forget)

    def get(self) -> asyncio.AbstractEventLoop:
        """Return the running loop."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="fairlead-clients", daemon=True).start()
            return self._loop

    def close_later(self, client: AsyncClient[Any]) -> None:
        """Close a client that nothing refers to any more, whose connections this loop would keep open."""
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(client.close(), self._loop)

    def _forget(self) -> None:
        self._lock, self._loop = threading.Lock(), None


_LOOP = _Loop()


class Blocking(Generic[_Client]):
    """Runs the coroutines of one asynchronous client and returns their results. A context manager.

    A client that is not closed keeps its connections until nothing refers to it.
    """

    _kind: type[_Client]

    def __init__(self, addresses: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        """Create the asynchronous client with these arguments."""
        self._client = self._kind(addresses, **options)
        self._closed = False
        self._unclosed = weakref.finalize(self, _LOOP.close_later, self._client)
        self._unclosed.atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        if self._closed:
            return
        self._run(self._client.close())
        self._unclosed.detach()
        self._closed = True

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return the result of the coroutine; an interrupt of the waiting thread cancels it.

        Raises:
            RuntimeError: if the client is closed, or the process was forked after its parent had used gRPC.
        """
        if self._closed:
            work.close()
            raise RuntimeError("this client is closed")
        future = asyncio.run_coroutine_threadsafe(work, _LOOP.get())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _iterate(self, items: AsyncIterator[_T]) -> Iterator[_T]:
        """Yield the items; closing the iterator early ends the stream."""

        async def step() -> tuple[bool, _T | None]:
            try:
                return True, await anext(items)
            except StopAsyncIteration:
                return False, None

        try:
            while True:
                found, item = self._run(step())
                if not found:
                    return
                yield item  # type: ignore[misc]
        finally:
            close: Any = getattr(items, "aclose", None)
            if close is not None and not self._closed:
                self._run(close())
