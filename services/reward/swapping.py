"""A scoring whose model is replaced while it serves, at once or for a share of the traffic first.

Between the dialects and the models in this process. A request is scored by the model that was there when it
came, to its end; the newer one is loaded and tried beside it before it gets a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

from fairlead import metrics
from fairlead.config.serving import RewardSection
from fairlead.errors import InvalidInput, NotFound, Unavailable
from fairlead.types import RewardInfo, ScoreItem, Scores, ServedReward
from services.reward.loaded import Load, LoadedModel
from services.reward.scoring import ScoreCall
from services.runtime.exclusive import ExclusiveGate
from services.runtime.process import Stopped

logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class SwappingScoring:
    """A `Scoring` over the current model and perhaps a canary. An async context manager."""

    def __init__(
        self,
        current: LoadedModel,
        section: RewardSection,
        *,
        batcher_metrics: metrics.BatcherMetrics,
        reward_metrics: metrics.RewardMetrics,
        load: Load,
    ) -> None:
        """See `open`."""
        self._load_in_thread = load
        self.left_loading = False
        """Whether a thread still loads a model that nobody waits for, as the process was told to stop."""
        self._current = current
        self._canary: LoadedModel | None = None
        self._share = 0.0
        self._section, self._batcher_metrics, self._reward_metrics = section, batcher_metrics, reward_metrics
        self._gate = ExclusiveGate()
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[object]] = set()

    @classmethod
    async def open(
        cls,
        path: str,
        section: RewardSection,
        *,
        batcher_metrics: metrics.BatcherMetrics,
        reward_metrics: metrics.RewardMetrics,
        load: Load = asyncio.to_thread,
    ) -> Self:
        """With the first model.

        Args:
            path: folder or hub id.
            section: limits and ways of reading, the same for all models.
            batcher_metrics: of all batchers together.
            reward_metrics: of swaps and of the canary's traffic.
            load: runs the slow part, of later models too; raises Stopped when the process shall end.

        Raises:
            ModelLoadError: as `LoadedModel.load`.
        """
        current = await LoadedModel.load(
            path, section, batcher_metrics=batcher_metrics, reward_metrics=reward_metrics, load=load
        )
        return cls(
            current, section, batcher_metrics=batcher_metrics, reward_metrics=reward_metrics, load=load
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends when every model has finished what it had in hand."""
        async with self._changing:
            for model in (self._current, self._canary):
                if model is not None:
                    self._retire(model)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def info(self) -> RewardInfo:
        """The current model, with the version and share of the canary."""
        if self._canary is None:
            return self._current.info
        version = self._canary.info.model_version
        return replace(self._current.info, canary_model_version=version, canary_share=self._share)

    @property
    def models(self) -> Sequence[RewardInfo]:
        """The current model, and the canary behind it."""
        return [served.info for served in self.served]

    @property
    def served(self) -> list[ServedReward]:
        """The models with their shares of the traffic."""
        if self._canary is None:
            return [ServedReward(self._current.info, 1.0)]
        return [
            ServedReward(self._current.info, 1.0 - self._share),
            ServedReward(self._canary.info, self._share),
        ]

    async def score(self, items: Sequence[ScoreItem], call: ScoreCall) -> Scores:
        """As `Scoring.score`; the requested version or the request id decides which model computes."""
        return await self._gate.run(lambda: self._choose(call).run(items, call), exclusive=call.exclusive)

    async def load(self, path: str, *, canary_share: float = 0.0) -> list[ServedReward]:
        """Loads and tries a model, and lets it score everything, or a share as the canary.

        It goes on to the end though the caller leaves. A former canary makes room for a new one; loading what
        is there already changes nothing.

        Raises:
            ModelLoadError: it cannot be loaded or cannot score; what is served stays as it was.
            InvalidInput: the share is none, or the canary would be the current model.
        """
        _check_share(canary_share, least=0.0)
        return await self._finish(self._load(path, canary_share))

    async def set_share(self, share: float) -> list[ServedReward]:
        """Changes the canary's share.

        Raises:
            InvalidInput: the share is none.
            NotFound: there is no canary.
        """
        _check_share(share, least=1e-6)
        async with self._changing:
            self._need_canary()
            self._set_share(share)
        return self.served

    async def promote(self, version: str = "") -> list[ServedReward]:
        """Makes the canary the current model.

        Args:
            version: of the canary that is meant; that it is the current model already is fine. Empty: any.

        Raises:
            NotFound: there is no canary, or another one.
        """
        async with self._changing:
            if not version or version != self._current.info.model_version:
                model = self._need_canary()
                if version and model.info.model_version != version:
                    raise NotFound(f"no canary of version {version!r}: it is {model.info.model_version}")
                self._canary = None
                self._set_share(0.0)
                self._swap(model)
        return self.served

    async def abandon(self) -> list[ServedReward]:
        """Gives the canary up; that there is none is fine."""
        async with self._changing:
            if self._canary is not None:
                former, self._canary = self._canary, None
                self._set_share(0.0)
                self._retire(former)
        return self.served

    def _choose(self, call: ScoreCall) -> LoadedModel:
        model = self._current
        if call.model_version:
            model = self._find(call.model_version)
        elif self._canary is not None and _point(call.request_id) < self._share:
            model = self._canary
        if self._canary is not None:
            self._reward_metrics.requests.labels("canary" if model is self._canary else "current").inc()
        return model

    def _find(self, version: str) -> LoadedModel:
        for model in (self._current, self._canary):
            if model is not None and model.info.model_version == version:
                return model
        served = ", ".join(info.model_version for info in self.models)
        raise NotFound(f"the reward model has no version {version!r} here; served: {served}")

    async def _load(self, path: str, share: float) -> list[ServedReward]:
        async with self._changing:
            try:
                model = await LoadedModel.load(
                    path,
                    self._section,
                    batcher_metrics=self._batcher_metrics,
                    reward_metrics=self._reward_metrics,
                    load=self._load_in_thread,
                )
            except Stopped:
                self.left_loading = True
                raise Unavailable("the service is stopping") from None
            except BaseException:
                self._reward_metrics.load_failures.inc()
                raise
            if _is_same(model.info, self._current.info):
                self._retire(model)
                if share:
                    got = f"{path}, which is version {model.info.model_version} as the current model"
                    raise InvalidInput("path", got=got, allowed="another model as the canary")
                logger.info("%s is served already: version %s", path, model.info.model_version)
            elif share:
                former, self._canary = self._canary, model
                self._set_share(share)
                if former is not None:
                    self._retire(former)
                logger.info("%s scores %g of the traffic: version %s", path, share, model.info.model_version)
            else:
                self._swap(model)
        return self.served

    def _swap(self, model: LoadedModel) -> None:
        former, self._current = self._current, model
        before, after = former.info, model.info
        logger.info(
            "%s is served: version %s after %s", model.path, after.model_version, before.model_version
        )
        for what in ("tokenizer_fingerprint", "max_sequence_tokens"):
            was, now = getattr(before.model, what), getattr(after.model, what)
            if was != now:
                logger.warning("the %s changed from %s to %s", what, was, now)
        self._reward_metrics.swaps.inc()
        self._retire(former)

    def _set_share(self, share: float) -> None:
        self._share = share
        self._reward_metrics.canary_share.set(share)

    def _need_canary(self) -> LoadedModel:
        if self._canary is None:
            raise NotFound("no canary here: load one with a share first")
        return self._canary

    def _retire(self, model: LoadedModel) -> None:
        """In the background: what it has in hand is finished."""
        self._spawn(model.close())

    async def _finish(self, work: Awaitable[_T]) -> _T:
        """Waits for work that goes on though the waiting is cancelled."""
        return await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Awaitable[_T]) -> asyncio.Task[_T]:
        async def run() -> _T:
            return await work

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[_T]) -> None:
        self._tasks.discard(task)
        with contextlib.suppress(asyncio.CancelledError):
            task.exception()  # it was told to whoever waited


def _point(request_id: str) -> float:
    """Where a request stands in [0, 1): equal ids alike, so that its retries find the same model."""
    if not request_id:
        return random.random()
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _is_same(one: RewardInfo, other: RewardInfo) -> bool:
    """Whether they score alike, wherever they lie."""
    return replace(one, model=replace(one.model, model_id="")) == replace(
        other, model=replace(other.model, model_id="")
    )


def _check_share(share: float, *, least: float) -> None:
    if not least <= share < 1:
        raise InvalidInput("canary_share", got=share, allowed="a number between 0 and 1, both left out")
