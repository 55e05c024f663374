"""A request on its way through the engine: its samples, who waits for them, and until when.

Made by the asyncio side, worked on by the engine's thread; what both touch is a future and a flag.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from fairlead.errors import DeadlineExceeded, StaleWeights
from fairlead.types import Completion, WeightVersion
from services.policy.sample import Sample

_MAX_MARGIN_SECONDS = 0.5


class Ticket:
    """One request."""

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        min_version: WeightVersion | None,
        deadline: float | None,
        exclusive: bool = False,
    ) -> None:
        """`deadline` is on the clock of `time.monotonic`; `alone`: nothing else runs while it does."""
        self.exclusive = exclusive
        self.samples = tuple(samples)
        self.min_version = min_version
        self._deadline = deadline
        self._stale_deadline = None if deadline is None else deadline - _margin(deadline)
        self.future: Future[tuple[Completion, ...]] = Future()
        self.on_delta: Callable[[int, Completion], None] | None = None
        """Called in the engine's thread with (sample, what is new of it); set before it is put in."""
        self._left = len(self.samples)
        self._index = {id(sample): index for index, sample in enumerate(self.samples)}
        self.closed = False
        """Answered, failed, or no longer wanted."""
        self.future.add_done_callback(self._close)

    def is_served_by(self, version: WeightVersion) -> bool:
        """Whether these weights are new enough."""
        return self.min_version is None or self.min_version <= version

    def _serves(self, version: WeightVersion | None) -> bool:
        return version is not None and self.is_served_by(version)

    def deadline(self, version: WeightVersion | None) -> float | None:
        """When it expires, given the weights in use: a little early where it waits for newer ones."""
        return self._deadline if self._serves(version) else self._stale_deadline

    def expire_if_due(self, now: float, version: WeightVersion | None) -> None:
        """Fails past its deadline, with what it was waiting for."""
        deadline = self.deadline(version)
        if deadline is None or now < deadline or self.closed:
            return
        if self._serves(version):
            self.fail(DeadlineExceeded("the deadline passed before all samples were complete"))
        else:
            self.fail(StaleWeights(f"weights {self.min_version} were asked for; {version} are here"))

    def advance(self, sample: Sample) -> None:
        """A sample got a token; the last token of the last sample answers the request."""
        if self.on_delta is not None and not self.closed:
            self.on_delta(self._index[id(sample)], sample.delta())
        if sample.finish_reason is None:
            return
        self._left -= 1
        if self._left == 0:
            with suppress(InvalidStateError):  # the caller left at this moment
                self.future.set_result(tuple(each.completion() for each in self.samples))

    def fail(self, error: Exception) -> None:
        """Ends it with an error, unless it has ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def _close(self, _: object) -> None:
        self.closed = True


def _margin(deadline: float) -> float:
    """How long before its deadline a request for newer weights is refused, so that the refusal arrives."""
    return min(_MAX_MARGIN_SECONDS, max(0.0, deadline - time.monotonic()) * 0.1)
