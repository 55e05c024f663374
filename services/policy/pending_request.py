"""A request on its way through the engine: its samples, its deadline, and the future of its caller.

Created on the asyncio side and processed by the engine's thread; they share only a future and a flag.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from fairlead.errors import DeadlineExceeded, StaleWeights
from fairlead.types import Completion, WeightVersion
from services.policy.sample_state import SampleState

_MAX_MARGIN_SECONDS = 0.5


class PendingRequest:
    """One request."""

    def __init__(
        self,
        samples: Sequence[SampleState],
        *,
        min_version: WeightVersion | None,
        deadline: float | None,
        exclusive: bool = False,
        on_start: Callable[[], None] | None = None,
        on_first_token: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            samples: the samples to generate.
            min_version: oldest weights that may generate them; None for any.
            deadline: on the clock of `time.monotonic`; None for no deadline.
            exclusive: whether no other request may run at the same time.
            on_start: called in the engine's thread shortly before an exclusive request starts.
            on_first_token: called in the engine's thread at the first token of any sample.
        """
        self.exclusive = exclusive
        self.on_start = on_start
        self._on_first_token = on_first_token
        self.samples = tuple(samples)
        self.min_version = min_version
        self._deadline = deadline
        self._stale_deadline = None if deadline is None else deadline - _margin(deadline)
        self.future: Future[tuple[Completion, ...]] = Future()
        self.on_delta: Callable[[int, Completion], None] | None = None
        """Called in the engine's thread with (sample index, new part of it); set before the request is
        queued."""
        self._unfinished = len(self.samples)
        self._index = {id(sample): index for index, sample in enumerate(self.samples)}
        self.closed = False
        """Finished, failed or cancelled."""
        self.future.add_done_callback(self._close)

    def is_served_by(self, version: WeightVersion) -> bool:
        """Return whether these weights are new enough."""
        return self.min_version is None or self.min_version <= version

    def _is_served(self, version: WeightVersion | None) -> bool:
        return version is not None and self.is_served_by(version)

    def deadline(self, version: WeightVersion | None) -> float | None:
        """Return when the request expires; slightly before its deadline if it waits for newer weights."""
        return self._deadline if self._is_served(version) else self._stale_deadline

    def expire_if_due(self, now: float, version: WeightVersion | None) -> None:
        """Fail the request if its deadline has passed; the error says what it was waiting for."""
        deadline = self.deadline(version)
        if deadline is None or now < deadline or self.closed:
            return
        if self._is_served(version):
            self.fail(DeadlineExceeded("the deadline passed before all samples were complete"))
        else:
            self.fail(
                StaleWeights(f"the request needs weights {self.min_version} or newer; {version} are in use")
            )

    def advance(self, sample: SampleState) -> None:
        """Handle a new token of a sample; the last token of the last sample finishes the request."""
        if self._on_first_token is not None:
            self._on_first_token()
            self._on_first_token = None
        if self.on_delta is not None and not self.closed:
            self.on_delta(self._index[id(sample)], sample.delta())
        if sample.finish_reason is None:
            return
        self._unfinished -= 1
        if self._unfinished == 0:
            with suppress(InvalidStateError):  # the caller cancelled at this moment
                self.future.set_result(tuple(each.completion() for each in self.samples))

    def fail(self, error: Exception) -> None:
        """Fail the request unless it has already ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def _close(self, _: object) -> None:
        self.closed = True


def _margin(deadline: float) -> float:
    """Return how long before its deadline a request for newer weights fails, so that the error arrives in
    time.
    """
    return min(_MAX_MARGIN_SECONDS, max(0.0, deadline - time.monotonic()) * 0.1)
