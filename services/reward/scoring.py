"""The contract between the servicers, which know the wire, and what computes scores.

`SwappingScoring` implements it with models in this process, `TritonScoring` with a remote server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fairlead.types import Priority, RewardInfo, ScoreItem, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCall:
    """How one request is to be scored."""

    deadline: float | None
    """Time on the clock of `time.monotonic` after which the work is not started; None for no deadline."""
    priority: Priority = Priority.ONLINE
    """Which requests the model takes first."""
    request_id: str = ""
    """With a canary, requests of the same id are scored by the same model."""
    model_version: str = ""
    """The version that must score the request; empty for any."""
    waits: bool = False
    """Whether to wait for space in the queue, until the deadline, instead of raising Overloaded."""
    exclusive: bool = False
    """Whether nothing else may be computed meanwhile; waits until the requests before it have ended."""
    on_start: Callable[[], None] | None = None
    """Called shortly before an exclusive request starts, which may kill the process."""


class Scoring(Protocol):
    """Scores the items of requests."""

    @property
    def info(self) -> RewardInfo:
        """The model that is served."""
        ...

    @property
    def models(self) -> Sequence[RewardInfo]:
        """Every model that scores requests; the first is `info`."""
        ...

    async def score(self, items: Sequence[ScoreItem], call: ScoreCall) -> Scores:
        """Return one scalar per item, in order.

        Args:
            items: the items of one request.
            call: the deadline and other options of the request.

        Raises:
            InvalidInput: for the first item that cannot be scored; no item of the request is scored.
            NotFound: if the requested version is not served.
            FairleadError: Overloaded, DeadlineExceeded, Unavailable.
        """
        ...
