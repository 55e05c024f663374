"""Retry calls to the queue while Redis is unavailable, log the wait, and give up after a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fairlead import watchdog
from fairlead.backoff import Backoff, retry_blocking
from fairlead.config.infrastructure import QueueSection
from fairlead.errors import QueueUnavailable

_Value = TypeVar("_Value")

_BACKOFF = Backoff(first_seconds=0.05, longest_seconds=5.0)


class QueueRetry:
    """Repeats a call to the queue until Redis answers or `queue.give_up_seconds` have passed."""

    def __init__(self, section: QueueSection, on_wait: Callable[[str], None]) -> None:
        """
        Args:
            section: says when to give up.
            on_wait: called before each pause with what is waited for.
        """
        self._section = section
        self._on_wait = on_wait

    def call(self, action: Callable[[], _Value]) -> _Value:
        """Return the result of the action, repeated while it raises `QueueUnavailable`.

        Raises:
            Stalled: after `give_up_seconds`; names the last error.
        """
        with watchdog.PROCESS.waiting("queue", "an answer of the queue", limited=False):
            return retry_blocking(
                action,
                what="the queue",
                backoff=_BACKOFF,
                on=QueueUnavailable,
                give_up_seconds=self._section.give_up_seconds,
                on_wait=lambda error: self._on_wait(f"the queue: {error}"),
            )
