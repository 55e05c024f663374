"""A reward model in this process, from its loading to the last request that it scores.

Sits between the scoring that chooses among models and the batcher. Models come and go while the service runs;
each finishes the requests that it has begun.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from fairlead import metrics
from fairlead.backoff import Backoff, retry
from fairlead.config.serving import RewardSection
from fairlead.errors import InternalError, InvalidInput, ModelLoadError, Overloaded
from fairlead.nn import allocator
from fairlead.types import RewardInfo, ScoreItem, Scores, TokenPair
from services.batching.batch_queue import BatchResult
from services.batching.batcher import MicroBatcher
from services.batching.packing import Packing
from services.reward.scoring import ScoreCall
from services.runtime.access.control import caller

logger = logging.getLogger(__name__)


class ItemScorer(Protocol):
    """Scores items: a reward model, or a function."""

    @property
    def info(self) -> RewardInfo:
        """The model as callers see it."""
        ...

    @property
    def failure(self) -> Future[None] | None:
        """Fails with the error after which the service must end; None if there is no such error."""
        ...

    @property
    def probes(self) -> Sequence[ScoreItem]:
        """Items of which one is scored before the model is served."""
        ...

    @property
    def packing(self) -> Packing[Any]:
        """How to choose batches that are cheap to compute."""
        ...

    def encode(self, items: Sequence[ScoreItem]) -> Sequence[Any]:
        """Return what `prepare` takes for each item; its length is the number of tokens.

        Raises:
            InvalidInput: for the first item that cannot be scored.
        """
        ...

    def prepare(self, encoded: Sequence[Any]) -> Callable[[], Sequence[float | Exception]]:
        """Build a batch; return a function that computes the score of each item, or its error."""
        ...

    def score(self, encoded: Sequence[Any]) -> Sequence[float | Exception]:
        """Prepare and compute a batch."""
        ...

    def close(self) -> None:
        """Free what outlives the scorer."""
        ...


Load = Callable[[Callable[[], ItemScorer]], Awaitable[ItemScorer]]
"""Runs blocking work in a thread."""

_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=1.0)
"""Pauses of a stream's request while the queue is full, if the error has no retry delay."""
_is_frozen = False


class LoadedModel:
    """One model, its batcher, and the number of requests in flight."""

    def __init__(self, path: str, scorer: ItemScorer, batcher: MicroBatcher[Any, float]) -> None:
        self.path = path
        self._scorer = scorer
        self._batcher = batcher
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @classmethod
    async def load(
        cls,
        path: str,
        section: RewardSection,
        *,
        batcher_metrics: metrics.BatcherMetrics,
        reward_metrics: metrics.RewardMetrics | None = None,
        load: Load = asyncio.to_thread,
    ) -> LoadedModel:
        """Load a model and score a probe with it.

        Args:
            path: folder or hub id.
            section: limits and settings of the model.
            batcher_metrics: metrics of the batcher.
            reward_metrics: metrics of prompt sharing.
            load: runs the slow part in a thread.

        Raises:
            ModelLoadError: the model cannot be loaded, or its scores are not finite.
        """
        try:
            scorer = await load(lambda: _scorer(path, section, reward_metrics))
        except (RuntimeError, MemoryError) as error:
            # For example, the device has no memory for a second model next to the served one.
            raise ModelLoadError(f"{path!r} cannot be loaded: {error}") from error
        batcher = MicroBatcher[Any, float](
            scorer.score,
            section.batching,
            batcher_metrics=batcher_metrics,
            field_name="items",
            prepare=scorer.prepare,
            packing=scorer.packing,
        )
        await batcher.__aenter__()
        model = cls(path, scorer, batcher)
        try:
            await model._probe()
        except BaseException:
            await model.close()
            raise
        return model

    @property
    def info(self) -> RewardInfo:
        """The model as callers see it."""
        return self._scorer.info

    @property
    def failure(self) -> Future[None] | None:
        """Fails with the error after which the service must end; None if there is no such error."""
        return self._scorer.failure

    async def run(self, items: Sequence[ScoreItem], call: ScoreCall) -> Scores:
        """Encode, admit and compute the items of one request; raises as `Scoring.score`.

        Call it without awaiting anything after the model was chosen, or the model may be closed meanwhile.
        """
        self._in_flight += 1
        self._idle.clear()
        try:
            return await self._run(items, call)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def close(self) -> None:
        """Wait for the requests in flight, then free the model's memory."""
        await self._idle.wait()
        await self._batcher.__aexit__(None, None, None)
        await asyncio.to_thread(self._scorer.close)
        del self._batcher, self._scorer
        await asyncio.to_thread(_free)

    async def _run(self, items: Sequence[ScoreItem], call: ScoreCall) -> Scores:
        info = self._scorer.info
        if all(isinstance(item, TokenPair) for item in items):
            # Checking ids takes less time than switching threads.
            sequences = self._scorer.encode(items)
        else:
            sequences = await asyncio.to_thread(self._scorer.encode, items)
        num_tokens = [len(sequence) for sequence in sequences]
        who = caller()
        priority = who.priority(call.priority)
        await who.admit(tokens=sum(num_tokens), waits=call.waits, deadline=call.deadline)

        def submit() -> Awaitable[BatchResult[float]]:
            return self._batcher.submit_timed(
                sequences, num_tokens, deadline=call.deadline, priority=priority
            )

        if call.waits:
            answer = await retry(submit, what="", backoff=_BACKOFF, on=Overloaded, deadline=call.deadline)
        else:
            answer = await submit()
        return Scores(
            scores=tuple(answer.results),
            model_version=info.model_version,
            num_tokens=tuple(num_tokens),
            queue_seconds=answer.queue_seconds,
            compute_seconds=answer.compute_seconds,
            calibration_temperature=info.calibration_temperature,
        )

    async def _probe(self) -> None:
        for item in self._scorer.probes:
            try:
                await self.run([item], ScoreCall(deadline=None))
            except InvalidInput:
                continue
            except InternalError as error:
                raise ModelLoadError(f"{self.path!r} was loaded but cannot score: {error}") from error
            return


def _scorer(path: str, section: RewardSection, reward_metrics: metrics.RewardMetrics | None) -> ItemScorer:
    if section.engine == "function":
        from services.reward.function.scorer import FunctionScorer

        return FunctionScorer(path, section)
    # Importing torch takes seconds; until then the process already answers probes and signals.
    from services.reward.scorer import RewardScorer

    global _is_frozen  # noqa: PLW0603 - the garbage collector is process-wide, too
    if not _is_frozen:
        # Exempt imported modules from collection: collecting a model would otherwise delay requests.
        gc.collect()
        gc.freeze()
        _is_frozen = True
    return RewardScorer(path, section, reward_metrics=reward_metrics)


def _free() -> None:
    if "torch" not in sys.modules:
        return
    import torch

    # Modules of transformers hold reference cycles.
    gc.collect()
    allocator.give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
