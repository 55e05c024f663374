"""A scoring whose reward is combined from several terms: models and functions of this process, other reward
services, and shapes of the answer. The score of each term is returned beside their combination.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from fairlead import metrics
from fairlead.backoff import Backoff, retry
from fairlead.clients import AsyncRewardClient
from fairlead.clients.client import ClientOptions
from fairlead.config.rewards import CombinedSection, RewardTerm
from fairlead.config.serving import RewardSection
from fairlead.errors import InvalidInput, NotFound
from fairlead.types import ModelInfo, RewardInfo, ScoreItem, Scores, TextPair, TokenPair
from services.reward.item_reader import check_pair
from services.reward.loaded import Load, LoadedModel
from services.reward.scoring import ScoreCall
from services.reward.shapes import shape_score
from services.runtime import limits
from services.runtime.exclusive import ExclusiveGate

_RETRY = Backoff(first_seconds=0.2, longest_seconds=2.0)


class Term(Protocol):
    """Scores answers by one term."""

    async def score(self, items: Sequence[TextPair], call: ScoreCall) -> Scores:
        """Return the scores of answers, and the version that computed them; raises as `Scoring.score`."""
        ...


@dataclass(frozen=True, slots=True)
class _OwnModel:
    """A model or function of this process."""

    model: LoadedModel

    async def score(self, items: Sequence[TextPair], call: ScoreCall) -> Scores:
        return await self.model.run(items, call)


@dataclass(frozen=True, slots=True)
class _Service:
    """Another reward service."""

    client: AsyncRewardClient

    async def score(self, items: Sequence[TextPair], call: ScoreCall) -> Scores:
        left = None if call.deadline is None else max(0.001, call.deadline - time.monotonic())
        return await self.client.score(
            items, priority=call.priority, request_id=call.request_id, timeout_seconds=left
        )


@dataclass(frozen=True, slots=True)
class _Shape:
    """A shape of the answer."""

    term: RewardTerm

    async def score(self, items: Sequence[TextPair], call: ScoreCall) -> Scores:
        scores = tuple(shape_score(self.term, item.response) for item in items)
        return Scores(scores, model_version=self.term.shape, num_tokens=(0,) * len(items))


class CombinedScoring:
    """Implements `Scoring`. An async context manager."""

    def __init__(
        self,
        section: RewardSection,
        *,
        batcher_metrics: metrics.BatcherMetrics,
        reward_metrics: metrics.RewardMetrics,
        load: Load = asyncio.to_thread,
        options: ClientOptions | None = None,
        resolve: Callable[[str], str] = str,
    ) -> None:
        """
        Args:
            section: the terms, and the limits of the models among them.
            batcher_metrics: metrics of the batchers of all models together.
            reward_metrics: metrics of prompt sharing.
            load: runs the loading of a model in a thread.
            options: of the clients of other services.
            resolve: returns a function's name with the path of its file made absolute.
        """
        self._section = section
        self._metrics = (batcher_metrics, reward_metrics)
        self._load = load
        self._options = options or ClientOptions()
        self._resolve = resolve
        self._terms: dict[str, Term] = {}
        self._versions: dict[str, str] = {}
        self._stack = AsyncExitStack()
        self._gate = ExclusiveGate()
        self.failure: Future[None] = Future()
        """Fails with the error of a model after which the service must end."""

    async def __aenter__(self) -> Self:
        """Load the models, and wait for the other services."""
        try:
            for name, term in self._section.combined.terms.items():
                self._terms[name], self._versions[name] = await self._open(term)
        except BaseException:
            await self._stack.aclose()
            raise
        self._metrics[1].set_model("combined", self.info.model_version)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def info(self) -> RewardInfo:
        """The combination: it has no tokenizer, so callers send texts."""
        names = " + ".join(self._terms)
        return RewardInfo(
            model=ModelInfo(
                model_id=f"combined: {names}",
                tokenizer_fingerprint="",
                vocabulary_size=0,
                max_sequence_tokens=self._section.max_sequence_tokens or self._section.max_text_bytes,
                dtype=self._section.dtype,
            ),
            model_version=_version(self._section.combined, self._versions),
            calibration_temperature=self._section.calibration_temperature,
        )

    @property
    def models(self) -> Sequence[RewardInfo]:
        """Only `info`."""
        return [self.info]

    async def score(self, items: Sequence[ScoreItem], call: ScoreCall) -> Scores:
        """As `Scoring.score`; the terms are scored at the same time."""
        if call.model_version not in ("", self.info.model_version):
            raise NotFound(f"the combined reward has no version {call.model_version[:80]!r}")
        pairs = self._pairs(items)
        found = await self._gate.run(
            lambda: self._score(pairs, call), exclusive=call.exclusive, on_start=call.on_start
        )
        self._metrics[1].observe_scores(found.scores)
        return found

    async def _score(self, pairs: Sequence[TextPair], call: ScoreCall) -> Scores:
        own = ScoreCall(
            deadline=call.deadline, priority=call.priority, request_id=call.request_id, waits=call.waits
        )
        tasks = [asyncio.ensure_future(term.score(pairs, own)) for term in self._terms.values()]
        try:
            found = dict(zip(self._terms, await asyncio.gather(*tasks), strict=True))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        self._versions |= {name: scores.model_version for name, scores in found.items()}
        terms = {name: scores.scores for name, scores in found.items()}
        combined = self._section.combined
        rows = (dict(zip(terms, row, strict=True)) for row in zip(*terms.values(), strict=True))
        return Scores(
            scores=tuple(combined.score(row) for row in rows),
            model_version=_version(combined, {name: one.model_version for name, one in found.items()}),
            num_tokens=tuple(map(max, zip(*(one.num_tokens for one in found.values()), strict=True))),
            queue_seconds=max(one.queue_seconds for one in found.values()),
            compute_seconds=max(one.compute_seconds for one in found.values()),
            calibration_temperature=self._section.calibration_temperature,
            terms=terms,
        )

    def _pairs(self, items: Sequence[ScoreItem]) -> list[TextPair]:
        limits.check_count("items", len(items), limit=self._section.batching.max_items)
        pairs = []
        for index, item in enumerate(items):
            if not isinstance(item, TextPair):
                field, got = ("tokens", "ids") if isinstance(item, TokenPair) else ("whole_text", "one text")
                allowed = "prompt and response as texts: the reward has several terms"
                raise InvalidInput(f"items.{field}", index=index, got=got, allowed=allowed)
            check_pair(index, item, max_bytes=self._section.max_text_bytes)
            pairs.append(item)
        return pairs

    async def _open(self, term: RewardTerm) -> tuple[Term, str]:
        if term.shape:
            return _Shape(term), term.shape
        if term.addresses:
            client = AsyncRewardClient(term.addresses, **self._options)
            self._stack.push_async_callback(client.close)
            info = await retry(client.info, what=f"the reward service at {term.addresses[0]}", backoff=_RETRY)
            return _Service(client), info.model_version
        batcher_metrics, reward_metrics = self._metrics
        model = await LoadedModel.load(
            self._resolve(term.function) or term.path,
            self._section.model_copy(update={"engine": "function" if term.function else "local"}),
            batcher_metrics=batcher_metrics,
            reward_metrics=reward_metrics,
            load=self._load,
        )
        self._stack.push_async_callback(model.close)
        if model.failure is not None:
            model.failure.add_done_callback(self._on_failure)
        return _OwnModel(model), model.info.model_version

    def _on_failure(self, done: Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            with suppress(InvalidStateError):
                self.failure.set_exception(error)


def _version(section: CombinedSection, versions: Mapping[str, str]) -> str:
    """Return a digest of the rule and of the versions of all terms."""
    left_out = {"multiplier"} if section.is_adaptive else set()
    rule = section.model_dump_json(exclude=left_out)
    return hashlib.sha256(f"{rule} {sorted(versions.items())}".encode()).hexdigest()[:12]
