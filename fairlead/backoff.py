"""Retry an action until it succeeds: pauses, limits, and the log of the wait.

Used by every loop that waits for something outside its process. Knows neither services nor the queue: the
caller passes the action and the errors that are worth a retry.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from fairlead.errors import FairleadError, Overloaded, Stalled, Transient

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

ErrorTypes = type[FairleadError] | tuple[type[FairleadError], ...]
"""What `except` accepts."""

_LOG_SECONDS = 5.0
"""A wait is logged at most this often."""
_MAX_DOUBLINGS = 60
"""Keeps `factor ** failures` within a float after many failures."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pauses between attempts: they grow by a factor up to a longest one, with jitter.

    With `jitter=1.0` this is "full jitter":
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    first_seconds: float
    """Pause after the first failure, before jitter."""
    longest_seconds: float
    """Longest pause, before jitter."""
    factor: float = 2.0
    """Growth of the pause from one failure to the next."""
    jitter: float = 0.5
    """Share of a pause that is random: 0 for exact pauses, 1 for anything between 0 and the pause."""

    def longest_pause_seconds(self, failures: int) -> float:
        """Return the pause after this many failures in a row, without jitter.

        Args:
            failures: counted from 1; less counts as 1.
        """
        growth = self.factor ** min(max(failures, 1) - 1, _MAX_DOUBLINGS)
        return min(self.longest_seconds, self.first_seconds * growth)

    def seconds(self, failures: int) -> float:
        """Return the pause after this many failures in a row, shortened at random by up to `jitter`."""
        longest = self.longest_pause_seconds(failures)
        return random.uniform((1.0 - self.jitter) * longest, longest)


async def retry(
    action: Callable[[], Awaitable[_T]],
    *,
    what: str,
    backoff: Backoff,
    on: ErrorTypes = Transient,
    deadline: float | None = None,
    give_up_seconds: float | None = None,
    on_wait: Callable[[FairleadError], None] | None = None,
) -> _T:
    """Return the result of an action, tried until it succeeds.

    After `Overloaded` the pause is the delay that the server asked for, lengthened by up to half at random so
    that callers refused together do not return together.

    Args:
        action: does the work once; raises while it cannot be done.
        what: name of what is waited for, used in the log and in `Stalled`; empty to log nothing.
        backoff: the pauses.
        on: errors after which the action is tried again; any other ends the retries.
        deadline: no attempt begins after it, on the clock of `time.monotonic`; None for no deadline.
        give_up_seconds: how long to wait in all; None for no limit.
        on_wait: called with the error before each pause; it may raise to end the retries.

    Raises:
        Stalled: if the action still fails after `give_up_seconds`; names the last error.
        FairleadError: the last error if the pause would pass the deadline, or any error not in `on`.
    """
    attempts = _Attempts(what, backoff, deadline, give_up_seconds)
    while True:
        try:
            return await action()
        except on as error:
            pause = attempts.failed(error)
            if on_wait is not None:
                on_wait(error)
        await asyncio.sleep(pause)


def retry_blocking(
    action: Callable[[], _T],
    *,
    what: str,
    backoff: Backoff,
    on: ErrorTypes = Transient,
    deadline: float | None = None,
    give_up_seconds: float | None = None,
    on_wait: Callable[[FairleadError], None] | None = None,
) -> _T:
    """Return the result of an action, tried until it succeeds; as `retry`, for threads."""
    attempts = _Attempts(what, backoff, deadline, give_up_seconds)
    while True:
        try:
            return action()
        except on as error:
            pause = attempts.failed(error)
            if on_wait is not None:
                on_wait(error)
        time.sleep(pause)


class _Attempts:
    """The failures of one retried action."""

    def __init__(
        self, what: str, backoff: Backoff, deadline: float | None, give_up_seconds: float | None
    ) -> None:
        self._what = what
        self._backoff = backoff
        self._deadline = deadline
        self._give_up_seconds = give_up_seconds
        self._began = time.monotonic()
        self._logged_at: float | None = None
        self._failures = 0

    def failed(self, error: FairleadError) -> float:
        """Count a failure and return the pause before the next attempt, in seconds.

        Raises:
            Stalled: if `give_up_seconds` have passed.
            FairleadError: the error itself, if the next attempt would begin after the deadline.
        """
        self._failures += 1
        now = time.monotonic()
        waited = now - self._began
        if self._give_up_seconds is not None and waited > self._give_up_seconds:
            raise Stalled(f"waited {waited:.0f} s for {self._what}: {error}") from error
        pause = self._backoff.seconds(self._failures)
        if isinstance(error, Overloaded) and error.retry_after_seconds > 0:
            pause = error.retry_after_seconds * random.uniform(1.0, 1.5)
        if self._deadline is not None and now + pause >= self._deadline:
            raise error
        self._log(error, now=now, waited=waited)
        return pause

    def _log(self, error: FairleadError, *, now: float, waited: float) -> None:
        if not self._what or (self._logged_at is not None and now - self._logged_at < _LOG_SECONDS):
            return
        self._logged_at = now
        logger.warning("waiting for %s, %.0f s so far: %s", self._what, waited, error)
