"""How often and how fast a call is tried again: full-jitter backoff within attempts, a budget and a deadline.

Beneath `fairlead/rpc/channel.py`, which calls. Knows no replica and no message.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from grpc import aio

from fairlead.errors import DeadlineExceeded, FairleadError
from fairlead.rpc.status import error_from_status, is_worth_another_try


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The limits of retrying."""

    max_attempts: int = 6
    """Tries of one call, the first included."""
    initial_backoff_seconds: float = 0.1
    """Longest wait before the second try; doubles with every try."""
    max_backoff_seconds: float = 3.0
    """Longest wait before any try."""
    attempt_timeout_seconds: float | None = None
    """Deadline of a single try; None gives each try all the time that is left of the call's."""
    hedge_factor: float = 0.0
    """A call that has taken so many times the usual is sent to another replica as well; 0: none is."""
    budget_tokens: float = 100.0
    """Retries that may come in a burst, over all calls of a client."""
    budget_per_second: float = 10.0
    """Retries that come back into the budget every second."""
    budget_per_success: float = 0.2
    """Retries that come back with every call that succeeds."""

    def backoff_seconds(self, attempt: int) -> float:
        """Wait after try number `attempt` (from 1): uniform between 0 and a bound that doubles.

        Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        """
        bound = min(self.max_backoff_seconds, self.initial_backoff_seconds * 2.0 ** (attempt - 1))
        return random.uniform(0, bound)


class RetryBudget:
    """A token bucket that keeps retries a fraction of the calls, so that an outage is not made worse."""

    def __init__(self, policy: RetryPolicy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._tokens = policy.budget_tokens
        self._filled_at = clock()

    def take(self) -> bool:
        """Takes one retry out; False if there is none."""
        now = self._clock()
        self._add((now - self._filled_at) * self._policy.budget_per_second)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def success(self) -> None:
        """A call went well."""
        self._add(self._policy.budget_per_success)

    def _add(self, tokens: float) -> None:
        self._tokens = min(self._policy.budget_tokens, self._tokens + tokens)


class Attempts:
    """The tries of one call."""

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
        self.avoid: set[str] = set()
        """Replicas that could not do it, while others can be asked."""

    def remaining(self) -> float:
        """Seconds left, all tries together.

        Raises:
            FairleadError: if there are none.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._last or DeadlineExceeded(f"{self._service}: no answer {self._so_far()}")
        return left

    def timeout(self) -> float:
        """Deadline of the next try, in seconds."""
        return min(self.remaining(), self._policy.attempt_timeout_seconds or float("inf"))

    def check_wait(self, seconds: float) -> None:
        """Fails the call now if it would only be out of time after a wait.

        Raises:
            FairleadError: what the last try said.
        """
        if seconds >= self._deadline - time.monotonic():
            raise self._last or DeadlineExceeded(f"{self._service}: no replica takes calls {self._so_far()}")

    def failed(self, address: str, error: aio.AioRpcError) -> None:
        """Takes note of a try that failed.

        Raises:
            FairleadError: if there is no other, because it would not help, or a limit is reached.
        """
        self._made += 1
        self._last = self.error(address, error)
        if (
            not is_worth_another_try(error)
            or self._made >= self._policy.max_attempts
            or self._deadline <= time.monotonic()
            or not self._budget.take()
        ):
            raise self._last from error

    def progressed(self) -> None:
        """A try brought something before it ends; only tries in vain are counted."""
        self._made = 0

    async def pause(self, *, at_least_seconds: float = 0.0) -> None:
        """Waits before the next try, with full jitter.

        Raises:
            FairleadError: what the last try said, if the deadline would come first.
        """
        # What a server asks for replaces the doubling; the jitter keeps those apart whom it refused together.
        delay = at_least_seconds + self._policy.backoff_seconds(1 if at_least_seconds else self._made)
        self.check_wait(delay)
        await asyncio.sleep(delay)

    def error(self, address: str, error: aio.AioRpcError) -> FairleadError:
        """What the caller is told of a try that failed."""
        return error_from_status(error, where=f"{self._service} at {address}", so_far=self._so_far())

    def _so_far(self) -> str:
        seconds = time.monotonic() - self._start
        return f"after {self._made} {'try' if self._made == 1 else 'tries'} in {seconds:.1f} s"
