"""Waiting for a queue that is away: tries again, says so, and gives up in the end. Knows no tasks."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from fairlead import watchdog
from fairlead.config.infrastructure import QueueSection
from fairlead.errors import QueueUnavailable, Stalled

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_LONGEST_BACKOFF_SECONDS = 5.0


class Patience:
    """Retries what the queue cannot do now, until the queue has been silent for `give_up_seconds`."""

    def __init__(self, section: QueueSection, on_wait: Callable[[str], None]) -> None:
        self._section = section
        self._on_wait = on_wait

    def call(self, action: Callable[[], Value]) -> Value:
        """The action's value, however often it has to be tried.

        Raises:
            Stalled: when time is up, naming the last failure.
        """
        with watchdog.PROCESS.waiting("queue", "the queue's answer", limited=False):
            return self._call(action)

    def _call(self, action: Callable[[], Value]) -> Value:
        begun, tries = time.monotonic(), 0
        while True:
            try:
                return action()
            except QueueUnavailable as error:
                waited = time.monotonic() - begun
                if waited > self._section.give_up_seconds:
                    raise Stalled(f"waited {waited:.0f} s for the queue: {error}") from error
                logger.warning("the queue is unavailable: %s", error)
                self._on_wait(f"the queue: {error}")
                delay = min(_LONGEST_BACKOFF_SECONDS, 0.05 * 2**tries)
                time.sleep(delay * random.uniform(0.5, 1.0))
                tries += 1
