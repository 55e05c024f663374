"""The synchronous face of the clients: an event loop of their own in a thread, so that it also works where
a loop runs already, as in a notebook. Knows no service.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

from fairlead.clients.client import AsyncClient, ClientOptions

_T = TypeVar("_T")
_Client = TypeVar("_Client", bound="AsyncClient[Any]")


def _is_news(record: logging.LogRecord) -> bool:
    """False of gRPC's complaint that an event came too late for a loop that is closed.

    That happens to the last event of a client that is closed beside another one; nobody waits for it.
    """
    error = record.exc_info[1] if record.exc_info else None
    return "PollerCompletionQueue" not in record.getMessage() or str(error) != "Event loop is closed"


logging.getLogger("asyncio").addFilter(_is_news)


class Blocking(Generic[_Client]):
    """Runs the coroutines of one asynchronous client to their end. A context manager."""

    _kind: type[_Client]

    def __init__(self, addresses: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        """As the asynchronous client."""
        self._client = self._kind(addresses, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fairlead-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections and ends the thread. A second call does nothing."""
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The coroutine's result; an interrupt of the waiting thread cancels it."""
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("this client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _iterate(self, items: AsyncIterator[_T]) -> Iterator[_T]:
        """The items one by one; leaving the loop early ends the stream."""

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
            if close is not None and not self._loop.is_closed():
                self._run(close())
