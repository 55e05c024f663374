"""One HTTP connection: uvicorn's protocol with a limit on the time that the head of a request may take, and
with a later end of idle connections when the server drains.

Uvicorn limits only the time between two requests. A caller that sends nothing, or half a head, would
otherwise keep its connection for ever.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""Time from opening a connection, or from the first byte of a later request, to the end of the head."""
_IDLE_DRAIN_SECONDS = 0.5
"""Time that an idle connection stays open in a drain: the next request of its caller may be under way."""


class Connection(H11Protocol):
    """A connection of a caller."""

    head_seconds = HEAD_SECONDS

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first request."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Pass data on; the timer runs while a head is incomplete."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._watch_head()
        else:
            self._head_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._head_complete()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Start the timer if a part of the next head has been received already."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._watch_head()

    def shutdown(self) -> None:
        """Close an idle connection a little later, and another one after its response.

        A request that arrives meanwhile is answered, and its response closes the connection.
        """
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_IDLE_DRAIN_SECONDS, super().shutdown)
        else:
            super().shutdown()

    def _watch_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._close)

    def _head_complete(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close(self) -> None:
        self._head_timer = None
        self.timeout_keep_alive_handler()
