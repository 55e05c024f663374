"""Who may still queue: what waits is bounded in tokens, and by the time that it would wait.

Time comes from what the model's own batches took.
"""

from __future__ import annotations

import time

from fairlead.config.serving import BatchingSection
from fairlead.errors import InvalidInput, Overloaded
from fairlead.types import Priority

_MEMORY = 0.8
"""Weight of what was learnt before, each batch."""
_TELLING_SHARE = 0.125
"""Of a full batch; smaller ones say nothing of speed."""
_LONGEST_DELAY_SECONDS = 30.0
_SHORTEST_DELAY_SECONDS = 0.05
_BULK_SHARE = 0.5
"""Of the tokens that may wait; the rest is left to those whose answers somebody awaits."""


class Speed:
    """Tokens a second, of recent batches that were large enough to tell.

    Small ones take what a call takes, whatever they hold. Where many tokens wait, batches are large, so what
    matters is learnt as soon as it does.
    """

    def __init__(self, *, max_batch_tokens: int) -> None:
        self._enough_tokens = max_batch_tokens * _TELLING_SHARE
        self._tokens_per_second = 0.0

    def learn(self, tokens: int, seconds: float) -> None:
        """One batch was computed."""
        if tokens < self._enough_tokens:
            return
        found, known = tokens / max(seconds, 1e-6), self._tokens_per_second
        self._tokens_per_second = _MEMORY * known + (1 - _MEMORY) * found if known else found

    def seconds(self, tokens: int) -> float:
        """What so many tokens will take; 0 while nothing is known."""
        return tokens / self._tokens_per_second if self._tokens_per_second else 0.0


class Admission:
    """Refuses what would wait too long. Not for several threads at a time."""

    def __init__(self, section: BatchingSection, *, field_name: str) -> None:
        self._section = section
        self._field_name = field_name
        self._speed = Speed(max_batch_tokens=section.max_batch_tokens)
        self._running: tuple[float, float] | None = None
        self.chosen_tokens = 0
        """Of the batch that waits for the model."""

    def chosen(self, tokens: int) -> None:
        """A batch has left the queue and waits for the model."""
        self.chosen_tokens = tokens

    def begun(self, tokens: int) -> None:
        """The model has begun a batch."""
        self.chosen_tokens = 0
        self._running = (time.monotonic(), self._speed.seconds(tokens))

    def ended(self, tokens: int, seconds: float) -> None:
        """It is done with it."""
        self._running = None
        self._speed.learn(tokens, seconds)

    def wait_seconds(self, waiting_tokens: int) -> float:
        """How long the last of so many tokens will wait for the model."""
        left = self._speed.seconds(self.chosen_tokens)
        if self._running is not None:
            begun, expected = self._running
            left += max(0.0, begun + expected - time.monotonic())
        return left + self._speed.seconds(waiting_tokens)

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
            excess = self._speed.seconds(waiting + total - limit) or 1.0
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
