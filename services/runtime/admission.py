"""Who may still queue: what waits is bounded in tokens, and by the time that it would wait.

Time comes from what the model's own batches took, as a line: seconds a batch and seconds a token.
"""

from __future__ import annotations

import math
import time

from fairlead.config.compute import BatchingSection
from fairlead.errors import InvalidInput, Overloaded
from fairlead.types import Priority

_MEMORY = 0.97
"""Weight of what was learnt before, each batch: some thirty batches count."""
_LONGEST_DELAY_SECONDS = 30.0
_SHORTEST_DELAY_SECONDS = 0.05
_BULK_SHARE = 0.5
"""Of the tokens that may wait; the rest is left to those whose answers somebody awaits."""


class BatchCost:
    """Seconds of a batch as a + b · tokens, by least squares over recent batches."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def learn(self, tokens: int, seconds: float) -> None:
        """One batch was computed."""
        for name, value in (("_weight", 1.0), ("_x", tokens), ("_y", seconds)):
            setattr(self, name, _MEMORY * getattr(self, name) + value)
        self._xx = _MEMORY * self._xx + tokens * tokens
        self._xy = _MEMORY * self._xy + tokens * seconds

    def seconds(self, tokens: int, *, batches: int) -> float:
        """What so many tokens in so many batches will take; 0 while nothing is known."""
        if not self._weight or not tokens:
            return 0.0
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean_x**2
        ratio = mean_y / mean_x
        slope = ratio
        if variance > (0.05 * mean_x) ** 2:
            slope = (self._xy / self._weight - mean_x * mean_y) / variance
        # Noise must not make tokens free, nor batches give time back.
        slope = min(max(slope, 0.1 * ratio), ratio)
        return max(0.0, mean_y - slope * mean_x) * batches + slope * tokens


class Admission:
    """Refuses what would wait too long. Not for several threads at a time."""

    def __init__(self, section: BatchingSection, *, field_name: str) -> None:
        self._section = section
        self._field_name = field_name
        self._cost = BatchCost()
        self._running: tuple[float, float] | None = None
        self.chosen_tokens = 0
        """Of the batch that waits for the model."""

    def chosen(self, tokens: int) -> None:
        """A batch has left the queue and waits for the model."""
        self.chosen_tokens = tokens

    def begun(self, tokens: int) -> None:
        """The model has begun a batch."""
        self.chosen_tokens = 0
        self._running = (time.monotonic(), self._cost.seconds(tokens, batches=1))

    def ended(self, tokens: int, seconds: float) -> None:
        """It is done with it."""
        self._running = None
        self._cost.learn(tokens, seconds)

    def wait_seconds(self, waiting_tokens: int) -> float:
        """How long the last of so many tokens will wait for the model."""
        batches = math.ceil(waiting_tokens / self._section.max_batch_tokens)
        left = self._cost.seconds(self.chosen_tokens, batches=1)
        if self._running is not None:
            begun, expected = self._running
            left += max(0.0, begun + expected - time.monotonic())
        return left + self._cost.seconds(waiting_tokens, batches=batches)

    def check(self, total: int, priority: Priority, *, online_tokens: int, bulk_tokens: int) -> None:
        """Lets a request of `total` tokens in.

        Raises:
            InvalidInput: if it alone is more than the queue may ever hold.
            Overloaded: if there is no room now; says when there will be.
        """
        section, bulk = self._section, priority is Priority.BULK
        limit = int(section.max_queue_tokens * _BULK_SHARE) if bulk else section.max_queue_tokens
        if total > limit:
            raise InvalidInput(
                self._field_name, got=f"{total} tokens", allowed=f"at most {limit} tokens in one request"
            )
        waiting = bulk_tokens if bulk else online_tokens + bulk_tokens
        if waiting + total > limit:
            excess = self._cost.seconds(waiting + total - limit, batches=0) or 1.0
            raise Overloaded(
                f"{waiting} tokens are waiting, at most {limit} may", retry_after_seconds=_delay(excess)
            )
        # An empty queue takes anything, so that one long batch refuses nobody; bulk is in no hurry.
        if bulk or not online_tokens:
            return
        wait = self.wait_seconds(online_tokens)
        if wait > section.max_queue_seconds:
            raise Overloaded(
                f"a request would wait {wait:.3g} s, at most {section.max_queue_seconds:g} s are allowed",
                retry_after_seconds=_delay(wait - section.max_queue_seconds),
            )


def _delay(seconds: float) -> float:
    return round(min(_LONGEST_DELAY_SECONDS, max(_SHORTEST_DELAY_SECONDS, seconds)), 3)
