"""A scoring whose model can be replaced while it serves: at once, or for a share of the traffic first.

Sits between the servicers and the models in this process. The model that was served when a request arrived
scores the whole request. A newer model is loaded and probed next to it before it gets requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

from fairlead import metrics
from fairlead.config.serving import RewardSection
from fairlead.errors import InvalidInput, ModelLoadError, NotFound, NotOffered, RankLost, Unavailable
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
        """Use `open` instead."""
        self._load_in_thread = load
        self.still_loading = False
        """Whether a thread still loads a model although the process is stopping."""
        self.failure: Future[None] = Future()
        """Fails with the error of a model after which the service must end."""
        self._current = self._watched(current)
        self._canary: LoadedModel | None = None
        self._share = 0.0
        self._section = section
        self._batcher_metrics = batcher_metrics
        self._reward_metrics = reward_metrics
        reward_metrics.set_model(current.path, current.info.model_version)
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
        """Load the first model.

        Args:
            path: folder or hub id.
            section: limits and settings, the same for all models.
            batcher_metrics: metrics of all batchers together.
            reward_metrics: metrics of swaps and of the canary's traffic.
            load: runs the slow part in a thread, for later models too; raises Stopped when the process stops.

        Raises:
            ModelLoadError: the model cannot be loaded or cannot score.
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
        """Wait until every model has finished its requests."""
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
        canary = self._canary.info
        return replace(
            self._current.info,
            canary_model_version=canary.model_version,
            canary_share=self._share,
            canary_model=canary.model,
            canary_calibration_temperature=canary.calibration_temperature,
        )

    @property
    def models(self) -> Sequence[RewardInfo]:
        """The current model, then the canary if there is one."""
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
        found = await self._gate.run(
            lambda: self._choose(call).run(items, call), exclusive=call.exclusive, on_start=call.on_start
        )
        self._reward_metrics.observe_scores(found.scores)
        return found

    async def load(self, path: str, *, canary_share: float = 0.0) -> list[ServedReward]:
        """Load and probe a model; then send it all traffic, or a share of it as the canary.

        Runs to the end even if the caller is cancelled. A new canary replaces a former one. Loading the
        current model again changes nothing.

        Raises:
            ModelLoadError: the model cannot be loaded or cannot score; the served models are kept.
            InvalidInput: the share is out of range, or the canary would be the current model.
            NotOffered: vLLM computes the scores, which has memory for one model.
        """
        if self._section.engine == "vllm":
            raise NotOffered(
                "a model that vLLM serves (reward.engine) cannot be replaced: start a replica with another"
            )
        _check_share(canary_share, least=0.0)
        return await self._finish(self._load(path, canary_share))

    async def set_share(self, share: float) -> list[ServedReward]:
        """Change the canary's share of the traffic.

        Raises:
            InvalidInput: the share is out of range.
            NotFound: there is no canary.
        """
        _check_share(share, least=1e-6)
        async with self._changing:
            self._need_canary()
            self._set_share(share)
        return self.served

    async def promote(self, version: str = "") -> list[ServedReward]:
        """Make the canary the current model.

        Args:
            version: version of the canary; empty for any. No error if it is the current model already.

        Raises:
            NotFound: there is no canary, or it has another version.
        """
        async with self._changing:
            if not version or version != self._current.info.model_version:
                model = self._need_canary()
                if version and model.info.model_version != version:
                    has = model.info.model_version
                    raise NotFound(f"no canary of version {version[:80]!r}: the canary has {has}")
                self._canary = None
                self._set_share(0.0)
                self._swap(model)
        return self.served

    async def abandon(self) -> list[ServedReward]:
        """Remove the canary. No error if there is none."""
        async with self._changing:
            if self._canary is not None:
                former = self._canary
                self._canary = None
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
        raise NotFound(
            f"the reward model has no version {version[:80]!r} on this replica; it serves {served}"
        )

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
                self.still_loading = True
                raise Unavailable("the service is stopping") from None
            except RankLost as error:
                # For example, a GPU has no memory for its part of a second model next to the served one.
                self._reward_metrics.load_failures.inc()
                raise ModelLoadError(f"{path!r} cannot be loaded: {error}") from error
            except BaseException:
                self._reward_metrics.load_failures.inc()
                raise
            self._watched(model)
            if _is_same(model.info, self._current.info):
                self._retire(model)
                if share:
                    got = f"{path}, which has the current model's version {model.info.model_version}"
                    raise InvalidInput("path", got=got, allowed="a model of another version")
                logger.info("%s is already served: version %s", path, model.info.model_version)
            elif share:
                former = self._canary
                self._canary = model
                self._set_share(share)
                if former is not None:
                    self._retire(former)
                logger.info(
                    "%s is the canary for %g of the traffic: version %s",
                    path,
                    share,
                    model.info.model_version,
                )
            else:
                self._swap(model)
        return self.served

    def _swap(self, model: LoadedModel) -> None:
        former = self._current
        self._current = model
        before = former.info
        after = model.info
        logger.info(
            "%s is served: version %s replaces %s", model.path, after.model_version, before.model_version
        )
        for name in ("tokenizer_fingerprint", "max_sequence_tokens"):
            old = getattr(before.model, name)
            new = getattr(after.model, name)
            if old != new:
                logger.warning("%s changed from %s to %s", name, old, new)
        self._reward_metrics.swaps.inc()
        self._reward_metrics.set_model(model.path, after.model_version)
        self._retire(former)

    def _set_share(self, share: float) -> None:
        self._share = share
        self._reward_metrics.canary_share.set(share)

    def _watched(self, model: LoadedModel) -> LoadedModel:
        """Pass the failure of a model on; return the model."""

        def on_done(done: Future[None]) -> None:
            error = None if done.cancelled() else done.exception()
            if error is not None:
                with contextlib.suppress(InvalidStateError):
                    self.failure.set_exception(error)

        if model.failure is not None:
            model.failure.add_done_callback(on_done)
        return model

    def _need_canary(self) -> LoadedModel:
        if self._canary is None:
            raise NotFound("there is no canary: load one with a share first")
        return self._canary

    def _retire(self, model: LoadedModel) -> None:
        """Close a model in the background, after its requests have finished."""
        self._spawn(model.close())

    async def _finish(self, work: Awaitable[_T]) -> _T:
        """Await work that continues even if the caller is cancelled."""
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
            task.exception()  # marks the error as retrieved; the caller got it, if there was one


def _point(request_id: str) -> float:
    """Return a number in [0, 1) that is the same for equal ids, so that retries reach the same model."""
    if not request_id:
        return random.random()
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _is_same(one: RewardInfo, other: RewardInfo) -> bool:
    """Return whether two models have the same weights and settings, regardless of their paths."""
    return replace(one, model=replace(one.model, model_id="")) == replace(
        other, model=replace(other.model, model_id="")
    )


def _check_share(share: float, *, least: float) -> None:
    if not least <= share < 1:
        raise InvalidInput("canary_share", got=share, allowed="a number in (0, 1)")
