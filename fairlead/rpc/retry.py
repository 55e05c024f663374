"""The retries of one call: full-jitter backoff within a number of attempts, a budget and a deadline.

Used by `fairlead/rpc/replicas.py`, which makes the calls. Knows nothing about replicas or messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from grpc import aio

from fairlead.backoff import Backoff
from fairlead.errors import DeadlineExceeded, FairleadError, Transient
from fairlead.rpc.call_counts import CALLS
from fairlead.rpc.status import error_from_status


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Limits of retries."""

    max_attempts: int = 6
    """Attempts of one call, the first included."""
    initial_backoff_seconds: float = 0.1
    """Longest pause before the second attempt; doubles with every attempt."""
    max_backoff_seconds: float = 3.0
    """Longest pause before any attempt."""
    attempt_timeout_seconds: float | None = None
    """Deadline of a single attempt; None for all the time that the call has left."""
    hedge_factor: float = 0.0
    """A call that has taken this many times the mean is sent to another replica as well; 0 disables
    hedging."""
    budget_tokens: float = 100.0
    """Retries allowed in a burst, over all calls of a client."""
    budget_per_second: float = 10.0
    """Retries added to the budget every second."""
    budget_per_success: float = 0.2
    """Retries added to the budget with every successful call."""

    def backoff_seconds(self, attempt: int) -> float:
        """Return the pause after an attempt (counted from 1): between 0 and a bound that doubles."""
        return Backoff(self.initial_backoff_seconds, self.max_backoff_seconds, jitter=1.0).seconds(attempt)


class RetryBudget:
    """A token bucket that limits retries to a fraction of the calls, so that retries do not worsen an
    outage.
    """

    def __init__(self, policy: RetryPolicy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._tokens = policy.budget_tokens
        self._filled_at = clock()

    def take(self) -> bool:
        """Take one retry from the budget; return False if none is left."""
        now = self._clock()
        self._add((now - self._filled_at) * self._policy.budget_per_second)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def success(self) -> None:
        """Add the share of a successful call."""
        self._add(self._policy.budget_per_success)

    def _add(self, tokens: float) -> None:
        self._tokens = min(self._policy.budget_tokens, self._tokens + tokens)


class Attempts:
    """The attempts of one call."""

    def __init__(
        self, service: str, policy: RetryPolicy, budget: RetryBudget, timeout_seconds: float
    ) -> None:
        self._service = service
        self._policy = policy
        self._budget = budget
        self._start = time.monotonic()
        self._deadline = self._start + timeout_seconds
        self._made = 0
        self._last: FairleadError | None = None
        self._attempt_start = self._start
        self._longest = 0.0
        self.avoid: set[str] = set()
        """Addresses of replicas that failed, not called again while there are others."""

    def remaining(self) -> float:
        """Return the seconds until the deadline of the call.

        Raises:
            FairleadError: the last error, or DeadlineExceeded, if the deadline has passed.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._last or self._never_called()
        return left

    def timeout(self) -> float:
        """Return the deadline of the next attempt, in seconds."""
        return min(self.remaining(), self._policy.attempt_timeout_seconds or float("inf"))

    def check_wait(self, seconds: float) -> None:
        """Fail the call now if a pause would pass its deadline.

        Raises:
            FairleadError: the last error.
        """
        if seconds >= self._deadline - time.monotonic():
            raise self._last or self._never_called()

    def failed(self, address: str, error: aio.AioRpcError) -> None:
        """Count a failed attempt.

        Raises:
            FairleadError: the error, if it is not transient or a limit is reached. Where the deadline of the
                call cut a last short attempt off, that of the attempt before it, which says why the call
                did not end in time.
        """
        self._made += 1
        lasted = time.monotonic() - self._attempt_start
        failure = self.error(address, error)
        if self._last is None or not isinstance(failure, DeadlineExceeded) or lasted > self._longest:
            self._last = failure
        self._longest = max(self._longest, lasted)
        if (
            not isinstance(self._last, Transient)
            or self._made >= self._policy.max_attempts
            or self._deadline <= time.monotonic()
            or not self._take_from_budget()
        ):
            raise self._last from error

    def _take_from_budget(self) -> bool:
        taken = self._budget.take()
        if not taken:
            CALLS.count_exhausted(self._service)
        return taken

    def progressed(self) -> None:
        """Start counting again: the current attempt has returned something."""
        self._made = 0

    async def pause(self, *, at_least_seconds: float = 0.0) -> None:
        """Wait before the next attempt, with full jitter.

        Args:
            at_least_seconds: delay that the server asked for.

        Raises:
            FairleadError: the last error, if the pause would pass the deadline.
        """
        # The server's delay replaces the doubling; jitter spreads the calls that it refused together.
        delay = at_least_seconds + self._policy.backoff_seconds(1 if at_least_seconds else self._made)
        self.check_wait(delay)
        await asyncio.sleep(delay)
        self._attempt_start = time.monotonic()

    def error(self, address: str, error: aio.AioRpcError) -> FairleadError:
        """Return the error of a failed attempt."""
        # A stream that breaks off has not been counted as a failed attempt yet.
        made = max(self._made, 1)
        seconds = time.monotonic() - self._start
        so_far = f"after {made} {'attempt' if made == 1 else 'attempts'} in {seconds:.1f} s"
        return error_from_status(error, where=f"{self._service} at {address}", so_far=so_far)

    def _never_called(self) -> DeadlineExceeded:
        """Return the error of a call that ends before its first attempt."""
        seconds = self._deadline - self._start
        return DeadlineExceeded(f"{self._service}: no replica accepted the call within {seconds:.1f} s")
