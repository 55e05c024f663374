"""Scores through a remote Triton or KServe server, with the reward service as its front.

A `Scoring` like the local one, so that dialects, limits, deadlines and metrics are the same whoever computes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from fairlead.clients.open_inference import AsyncOpenInferenceClient, Rewards, ServedModel
from fairlead.config.serving import RewardSection, TritonSection
from fairlead.errors import (
    DeadlineExceeded,
    FairleadError,
    InternalError,
    InvalidInput,
    NotFound,
    Overloaded,
    RemoteInvalidInput,
    Unavailable,
)
from fairlead.rpc.retry import RetryPolicy
from fairlead.types import Priority, RewardInfo, ScoreItem, Scores, TokenPair
from services.batching.packing import pack
from services.reward.triton.reader import TritonReader
from services.runtime.access import caller
from services.runtime.streams import patiently

logger = logging.getLogger(__name__)
_Row = TypeVar("_Row")
_Send = Callable[[list[_Row], float], Coroutine[None, None, Rewards]]

_SAY_EVERY_SECONDS = 10.0
_LEAST_SECONDS = 1e-3
"""A deadline that is nearer has passed by the time that a request would have left."""


class TritonScoring:
    """Scores with the model of a Triton server. Belongs to the event loop of its first call."""

    def __init__(
        self,
        client: AsyncOpenInferenceClient,
        reader: TritonReader,
        section: RewardSection,
        served: ServedModel,
    ) -> None:
        """
        Args:
            client: of the server's model.
            reader: items → ids or sentences.
            section: limits.
            served: what the server says of the model.
        """
        self._client, self._reader, self._section = client, reader, section
        self._max_rows = max(1, served.max_batch_size)
        self._tokens = 0
        self._versions: dict[str, str] = {}

    @property
    def info(self) -> RewardInfo:
        """What is served."""
        return self._reader.info

    @property
    def models(self) -> Sequence[RewardInfo]:
        """The one on the server."""
        return (self.info,)

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
        """As `Scoring.score`; what the server's queue took is part of `compute_seconds`.

        That a request is alone means nothing here: it is the server that it might kill, not this process.
        """
        if model_version not in ("", self.info.model_version):
            served = self.info.model_version
            raise NotFound(f"no version {model_version!r} of the reward model here; served is {served}")
        began = time.monotonic()
        who = caller()
        priority = who.priority(priority)

        async def all_of(rows: Sequence[_Row], lengths: Sequence[int], send: _Send[_Row]) -> Rewards:
            await who.admit(tokens=sum(lengths), waits=waits, deadline=deadline)
            if waits:
                return await patiently(lambda: self._all(rows, lengths, send, deadline), deadline=deadline)
            return await self._all(rows, lengths, send, deadline)

        if self._section.triton.sends == "sentences":
            texts, lengths = self._reader.sentences(items)

            def send_texts(part: list[str], seconds: float) -> Coroutine[None, None, Rewards]:
                return self._client.score_sentences(part, timeout_seconds=seconds, priority=priority)

            found = await all_of(texts, lengths, send_texts)
            counts = list(found.num_tokens)
            if any(counts):
                # The server counts; what was admitted was an estimate.
                await who.charge(tokens=sum(counts) - sum(lengths))
        else:
            if not all(isinstance(item, TokenPair) for item in items):
                rows = await asyncio.to_thread(self._reader.encode, items)
            else:
                rows = self._reader.encode(items)
            counts = [len(row) for row in rows]

            def send_rows(part: list[tuple[int, ...]], seconds: float) -> Coroutine[None, None, Rewards]:
                return self._client.score_tokens(part, timeout_seconds=seconds, priority=priority)

            found = await all_of(rows, counts, send_rows)
        return Scores(
            scores=found.scores,
            model_version=found.version,
            num_tokens=tuple(counts),
            compute_seconds=time.monotonic() - began,
            calibration_temperature=self.info.calibration_temperature,
        )

    async def _all(
        self, rows: Sequence[_Row], lengths: Sequence[int], send: _Send[_Row], deadline: float | None
    ) -> Rewards:
        """Sends rows of like length together, all parts at once, and puts the answers back in order."""
        total = sum(lengths)
        self._check_room(total)
        packed = pack(lengths, max_batch_tokens=self._section.batching.max_batch_tokens)
        parts = [
            batch[start : start + self._max_rows]
            for batch in packed
            for start in range(0, len(batch), self._max_rows)
        ]
        scores, counts, versions = [0.0] * len(rows), [0] * len(rows), set[str]()

        async def one(part: list[int]) -> None:
            found = await _indexed(send([rows[index] for index in part], self._seconds(deadline)), part)
            for place, index in enumerate(part):
                scores[index] = _finite(found.scores[place], index)
                counts[index] = found.num_tokens[place] if found.num_tokens else 0
            versions.add(await self._version(found.version))

        self._tokens += total
        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(one(part))
        except* FairleadError as errors:
            raise _first(errors) from None
        finally:
            self._tokens -= total
        return Rewards(tuple(scores), tuple(counts), "+".join(sorted(versions)))

    async def _version(self, number: str) -> str:
        """The version of the reward model behind the server's number; asked for once."""
        if number not in self._versions:
            told = (await self._client.served(number)).parameters
            self._versions[number] = told.get("model_version") or f"{self._section.triton.model}-{number}"
        return self._versions[number]

    def _check_room(self, total: int) -> None:
        limit = self._section.batching.max_queue_tokens
        if total > limit:
            raise InvalidInput(
                "items", got=f"{total} tokens", allowed=f"at most {limit} tokens in one request"
            )
        if self._tokens + total > limit:
            raise Overloaded(
                f"{self._tokens} tokens are on their way to Triton, at most {limit} may be",
                retry_after_seconds=1.0,
            )

    def _seconds(self, deadline: float | None) -> float:
        most = self._section.triton.timeout_seconds
        if deadline is None:
            return most
        left = deadline - time.monotonic()
        if left <= _LEAST_SECONDS:
            raise DeadlineExceeded("the deadline passed before the request left for Triton")
        return min(most, left)


async def _indexed(sending: Coroutine[None, None, Rewards], part: Sequence[int]) -> Rewards:
    """What the server refuses, with the index of the caller's item."""
    try:
        return await sending
    except RemoteInvalidInput as error:
        if error.index is None or error.index >= len(part):
            raise
        told = f"items[{part[error.index]}]: got {error.got}, allowed: {error.allowed}"
        raise RemoteInvalidInput(told) from error


def _finite(score: float, index: int) -> float:
    if not math.isfinite(score):
        raise InternalError(f"Triton's model gave {score} for item {index}: its weights are damaged")
    return score


def _first(errors: BaseExceptionGroup[FairleadError]) -> FairleadError:
    """One of the errors; a caller's own mistake rather than another."""
    found: list[FairleadError] = [error for error in errors.exceptions if isinstance(error, FairleadError)]
    return next((error for error in found if isinstance(error, InvalidInput)), found[0])


async def connect(path: str, section: RewardSection) -> tuple[TritonReader, ServedModel]:
    """Waits until the server has the model, asks what it is, and loads what reads for it.

    Raises:
        ConfigError: the model is no reward model, or not the one that `path` names.
        ModelLoadError: the tokenizer cannot be loaded.
    """
    served = await _wait_for_model(section.triton)
    return await asyncio.to_thread(TritonReader, path, section, served), served


async def _wait_for_model(section: TritonSection) -> ServedModel:
    said = 0.0
    async with _client(section) as client:
        while True:
            try:
                return await client.served()
            except (Unavailable, DeadlineExceeded) as error:
                if time.monotonic() - said > _SAY_EVERY_SECONDS:
                    said = time.monotonic()
                    logger.warning("waiting for Triton's model %s: %s", section.model, error)
            await asyncio.sleep(section.health_seconds)


@asynccontextmanager
async def serving(
    reader: TritonReader, served: ServedModel, section: RewardSection, set_ready: Callable[[bool], None]
) -> AsyncGenerator[TritonScoring]:
    """A scoring whose readiness follows that of the server.

    Args:
        reader: from `connect`.
        served: from `connect`.
        section: limits and addresses.
        set_ready: told the server's readiness again and again.
    """
    async with _client(section.triton) as client:
        scoring = TritonScoring(client, reader, section, served)
        watch = asyncio.create_task(_watch(client, section.triton, set_ready))
        try:
            yield scoring
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch


async def _watch(
    client: AsyncOpenInferenceClient, section: TritonSection, set_ready: Callable[[bool], None]
) -> None:
    was: bool | None = None
    while True:
        ready = await client.is_ready(timeout_seconds=max(1.0, section.health_seconds))
        if ready is not was:
            logger.log(
                logging.INFO if ready else logging.WARNING,
                "Triton's model %s is %s",
                section.model,
                "ready" if ready else "not ready: nothing is scored",
            )
            was = ready
        # Every time: what is said before the server listens is not heard.
        set_ready(ready)
        await asyncio.sleep(section.health_seconds)


def _client(section: TritonSection) -> AsyncOpenInferenceClient:
    return AsyncOpenInferenceClient(
        section.addresses,
        model=section.model,
        version=section.version,
        timeout_seconds=section.timeout_seconds,
        retry=RetryPolicy(max_attempts=section.max_attempts),
        api_key="",
        tls=section.tls,
    )
