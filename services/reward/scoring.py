"""What every dialect's servicer scores with: items in, scores with their version and times out.

Between the servicers, which know the wire, and whatever scores: a model in this process, or one elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Protocol, Required, TypedDict

from fairlead.errors import NotFound
from fairlead.types import Priority, RewardInfo, ScoreItem, Scores, TokenPair
from services.batching.batch_queue import BatchResult
from services.batching.batcher import MicroBatcher
from services.runtime.access import caller
from services.runtime.streams import patiently

if TYPE_CHECKING:
    from services.reward.scorer import RewardScorer


class ScoreOptions(TypedDict, total=False):
    """Options of `Scoring.score`, which says what they mean, for those that hand them on."""

    deadline: Required[float | None]
    priority: Priority
    request_id: str
    model_version: str
    waits: bool
    exclusive: bool


class Scoring(Protocol):
    """Scores the items of one request."""

    @property
    def info(self) -> RewardInfo:
        """What is served."""
        ...

    @property
    def models(self) -> Sequence[RewardInfo]:
        """Every model that requests are scored by; the first is `info`."""
        ...

    async def score(
        self,
        items: Sequence[ScoreItem],
        *,
        deadline: float | None,
        priority: Priority = Priority.ONLINE,
        request_id: str = "",
        model_version: str = "",
        waits: bool = False,
        exclusive: bool = False,
    ) -> Scores:
        """One scalar for each item, in order.

        Args:
            items: what to score.
            deadline: on the clock of `time.monotonic`; what has not begun by then is not begun.
            priority: who is served first.
            request_id: where several models share the traffic, equal ids are scored by the same one.
            model_version: the version that must score; empty takes what is served.
            waits: while there is no room, wait until the deadline rather than raise Overloaded; for callers
                that bound themselves what they have in work.
            exclusive: nothing else is computed meanwhile; refused as Overloaded while other requests run.

        Raises:
            InvalidInput: for the first item that cannot be scored; none is then.
            NotFound: if the version asked for is not served.
            FairleadError: Overloaded, DeadlineExceeded, Unavailable.
        """
        ...


class LocalScoring:
    """Scores with the model in this process, through its batcher."""

    def __init__(self, scorer: RewardScorer, batcher: MicroBatcher[tuple[int, ...], float]) -> None:
        self._scorer = scorer
        self._batcher = batcher

    @property
    def info(self) -> RewardInfo:
        """What is served."""
        return self._scorer.info

    @property
    def models(self) -> Sequence[RewardInfo]:
        """What is served, alone."""
        return (self._scorer.info,)

    async def score(
        self,
        items: Sequence[ScoreItem],
        *,
        deadline: float | None,
        priority: Priority = Priority.ONLINE,
        request_id: str = "",
        model_version: str = "",
        waits: bool = False,
        exclusive: bool = False,
    ) -> Scores:
        """As `Scoring.score`; that a request is alone is seen to by who holds all the models."""
        info = self._scorer.info
        if model_version not in ("", info.model_version):
            raise NotFound(
                f"no version {model_version!r} of the reward model here; served is {info.model_version}"
            )
        if not all(isinstance(item, TokenPair) for item in items):
            sequences = await asyncio.to_thread(self._scorer.encode, items)
        else:
            # Checking ids takes less than a change of threads.
            sequences = self._scorer.encode(items)
        num_tokens = [len(sequence) for sequence in sequences]
        who = caller()
        priority = who.priority(priority)
        await who.admit(tokens=sum(num_tokens), waits=waits, deadline=deadline)

        def submit() -> Awaitable[BatchResult[float]]:
            return self._batcher.submit_timed(sequences, num_tokens, deadline=deadline, priority=priority)

        answer = await (patiently(submit, deadline=deadline) if waits else submit())
        return Scores(
            scores=tuple(answer.results),
            model_version=info.model_version,
            num_tokens=tuple(num_tokens),
            queue_seconds=answer.queue_seconds,
            compute_seconds=answer.compute_seconds,
            calibration_temperature=info.calibration_temperature,
        )
