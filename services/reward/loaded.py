"""A reward model in this process, from loading to the last request that it scores.

Between the scoring that chooses among models and one model with its batcher. Models come and go while the
service runs; each finishes what it has begun.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Unpack

from fairlead import metrics
from fairlead.config.serving import RewardSection
from fairlead.errors import InternalError, InvalidInput, ModelLoadError
from fairlead.types import RewardInfo, ScoreItem, Scores, TextPair, TokenPair
from services.batching.batcher import MicroBatcher
from services.reward.scoring import LocalScoring, ScoreOptions
from services.runtime import allocator

if TYPE_CHECKING:
    from services.reward.scorer import RewardScorer

logger = logging.getLogger(__name__)

Load = Callable[[Callable[[], "RewardScorer"]], Awaitable["RewardScorer"]]
"""Runs blocking work in a thread."""

_is_frozen = False

_PROBES: tuple[ScoreItem, ...] = (TokenPair((), (1, 2)), TextPair("Hello", "world"))
"""Ids that every vocabulary has; encoders take no ids."""


class LoadedModel:
    """One model, its batcher, and the requests that it has in hand."""

    def __init__(
        self, path: str, scorer: RewardScorer, batcher: MicroBatcher[tuple[int, ...], float]
    ) -> None:
        self.path = path
        self._batcher = batcher
        self._scorer = scorer
        self._scoring = LocalScoring(scorer, batcher)
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @classmethod
    async def load(
        cls,
        path: str,
        section: RewardSection,
        *,
        counts: metrics.BatcherMetrics,
        reward_counts: metrics.RewardMetrics | None = None,
        load: Load = asyncio.to_thread,
    ) -> LoadedModel:
        """Loads a model and lets it score something.

        Args:
            path: folder or hub id.
            section: limits and ways of reading.
            counts: of batchers.
            reward_counts: of what need not be computed twice.
            load: runs the slow part.

        Raises:
            ModelLoadError: if it cannot be loaded, or its scores are no numbers.
        """
        try:
            scorer = await load(lambda: _scorer(path, section, reward_counts))
        except (RuntimeError, MemoryError) as error:
            # Such as no room on the device beside the model that is served.
            raise ModelLoadError(f"{path!r} cannot be loaded: {error}") from error
        batcher = MicroBatcher(
            scorer.score,
            section.batching,
            batcher_metrics=counts,
            field_name="items",
            prepare=scorer.prepare,
            packing=scorer.packing,
        )
        await batcher.__aenter__()
        model = cls(path, scorer, batcher)
        try:
            await model._try()
        except BaseException:
            await model.close()
            raise
        return model

    @property
    def info(self) -> RewardInfo:
        """What it is."""
        return self._scoring.info

    async def score(self, items: Sequence[ScoreItem], **options: Unpack[ScoreOptions]) -> Scores:
        """As `Scoring.score`; to be called without waiting since the model was chosen."""
        self._in_flight += 1
        self._idle.clear()
        try:
            return await self._scoring.score(items, **options)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def close(self) -> None:
        """Finishes what is in hand, and gives the memory back."""
        await self._idle.wait()
        await self._batcher.__aexit__(None, None, None)
        self._scorer.close()
        del self._batcher, self._scoring, self._scorer
        await asyncio.to_thread(_free)

    async def _try(self) -> None:
        for item in _PROBES:
            try:
                await self.score([item], deadline=None)
            except InvalidInput:
                continue
            except InternalError as error:
                raise ModelLoadError(f"{self.path!r} was loaded and cannot score: {error}") from error
            return


def _scorer(path: str, section: RewardSection, counts: metrics.RewardMetrics | None) -> RewardScorer:
    # torch takes seconds to import; until then the process already answers probes and signals.
    from services.reward.scorer import RewardScorer

    global _is_frozen  # noqa: PLW0603 - the collector is the process's, too
    if not _is_frozen:
        # What was imported stays: collecting a model need not look at it, which would hold up requests.
        gc.collect()
        gc.freeze()
        _is_frozen = True
    return RewardScorer(path, section, counts=counts)


def _free() -> None:
    import torch

    # Modules of transformers refer to themselves in circles.
    gc.collect()
    allocator.give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
