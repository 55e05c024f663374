"""Scores through a remote Triton or KServe server, with the reward service in front of it.

Implements `Scoring` as `SwappingScoring` does: servicers, limits, deadlines and metrics are the same for
both. The entry point of this package: `connect`, then `serving`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from fairlead.backoff import Backoff, retry
from fairlead.clients.open_inference import AsyncOpenInferenceClient, RemoteScores, ServedModel
from fairlead.config.serving import RewardSection, TritonSection
from fairlead.errors import (
    DeadlineExceeded,
    FairleadError,
    InternalError,
    InvalidInput,
    NotFound,
    Overloaded,
    RemoteInvalidInput,
)
from fairlead.rpc.retry import RetryPolicy
from fairlead.types import RewardInfo, ScoreItem, Scores, TokenPair
from services.batching.packing import pack
from services.reward.scoring import ScoreCall
from services.reward.triton.reader import TritonReader
from services.runtime.access.control import caller

logger = logging.getLogger(__name__)
_Row = TypeVar("_Row")
_Send = Callable[[list[_Row], float], Coroutine[None, None, RemoteScores]]

_HEALTH_SECONDS = 1.0
"""Time between readiness checks of the server; a proxy that probes the reward service does so about as often.
"""
_FULL_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=1.0)
"""Pauses of a stream's request while the server is full, if the error has no retry delay."""
_MIN_SECONDS = 1e-3
"""A deadline nearer than this passes before a request can be sent."""


class TritonScoring:
    """Scores with the model of a Triton server. Used within one event loop."""

    def __init__(
        self,
        client: AsyncOpenInferenceClient,
        reader: TritonReader,
        section: RewardSection,
        served: ServedModel,
    ) -> None:
        """
        Args:
            client: client of the server's model.
            reader: items → ids or sentences.
            section: limits.
            served: the server's description of its model.
        """
        self._client = client
        self._reader = reader
        self._section = section
        self._max_rows = max(1, served.max_batch_size)
        self._tokens_in_flight = 0
        self._versions: dict[str, str] = {}

    @property
    def info(self) -> RewardInfo:
        """The model that is served."""
        return self._reader.info

    @property
    def models(self) -> Sequence[RewardInfo]:
        """The server's model, the only one."""
        return (self.info,)

    async def score(self, items: Sequence[ScoreItem], call: ScoreCall) -> Scores:
        """As `Scoring.score`. Time in the server's queue is part of `compute_seconds`.

        `call.exclusive` isolates nothing: a request that crashes the server leaves this process running.
        """
        if call.model_version not in ("", self.info.model_version):
            served, asked = self.info.model_version, call.model_version[:80]
            raise NotFound(f"the reward model has no version {asked!r} on this replica; it serves {served}")
        if call.exclusive and call.on_start is not None:
            call.on_start()
        began = time.monotonic()
        if self._section.triton.sends == "sentences":
            found, num_tokens = await self._score_sentences(items, call)
        else:
            found, num_tokens = await self._score_tokens(items, call)
        return Scores(
            scores=found.scores,
            model_version=found.version,
            num_tokens=num_tokens,
            compute_seconds=time.monotonic() - began,
            calibration_temperature=self.info.calibration_temperature,
        )

    async def _score_sentences(
        self, items: Sequence[ScoreItem], call: ScoreCall
    ) -> tuple[RemoteScores, tuple[int, ...]]:
        texts, lengths = self._reader.sentences(items)
        priority = caller().priority(call.priority)

        def send(part: list[str], seconds: float) -> Coroutine[None, None, RemoteScores]:
            return self._client.score_sentences(part, timeout_seconds=seconds, priority=priority)

        found = await self._admit_and_send(texts, lengths, send, call)
        if any(found.num_tokens):
            # The server counts tokens; an estimate was admitted.
            await caller().charge(tokens=sum(found.num_tokens) - sum(lengths))
        return found, found.num_tokens

    async def _score_tokens(
        self, items: Sequence[ScoreItem], call: ScoreCall
    ) -> tuple[RemoteScores, tuple[int, ...]]:
        if all(isinstance(item, TokenPair) for item in items):
            rows = self._reader.encode(items)
        else:
            rows = await asyncio.to_thread(self._reader.encode, items)
        lengths = tuple(len(row) for row in rows)
        priority = caller().priority(call.priority)

        def send(part: list[tuple[int, ...]], seconds: float) -> Coroutine[None, None, RemoteScores]:
            return self._client.score_tokens(part, timeout_seconds=seconds, priority=priority)

        return await self._admit_and_send(rows, lengths, send, call), lengths

    async def _admit_and_send(
        self, rows: Sequence[_Row], lengths: Sequence[int], send: _Send[_Row], call: ScoreCall
    ) -> RemoteScores:
        await caller().admit(tokens=sum(lengths), waits=call.waits, deadline=call.deadline)
        if call.waits:
            return await retry(
                lambda: self._send_all(rows, lengths, send, call.deadline),
                what="",
                backoff=_FULL_BACKOFF,
                on=Overloaded,
                deadline=call.deadline,
            )
        return await self._send_all(rows, lengths, send, call.deadline)

    async def _send_all(
        self, rows: Sequence[_Row], lengths: Sequence[int], send: _Send[_Row], deadline: float | None
    ) -> RemoteScores:
        """Send rows of similar length together, all parts at once, and return the scores in order."""
        total = sum(lengths)
        self._check_queue(total)
        packed = pack(lengths, max_batch_tokens=self._section.batching.max_batch_tokens)
        parts = [
            batch[start : start + self._max_rows]
            for batch in packed
            for start in range(0, len(batch), self._max_rows)
        ]
        scores = [0.0] * len(rows)
        num_tokens = [0] * len(rows)
        versions = set[str]()

        async def send_part(part: list[int]) -> None:
            found = await _indexed(send([rows[index] for index in part], self._seconds(deadline)), part)
            for place, index in enumerate(part):
                scores[index] = _finite(found.scores[place], index)
                num_tokens[index] = found.num_tokens[place] if found.num_tokens else 0
            versions.add(await self._version(found.version))

        self._tokens_in_flight += total
        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(send_part(part))
        except* FairleadError as errors:
            raise _first(errors) from None
        finally:
            self._tokens_in_flight -= total
        return RemoteScores(tuple(scores), tuple(num_tokens), "+".join(sorted(versions)))

    async def _version(self, number: str) -> str:
        """Return the version of the reward model that has this number on the server; asked for once."""
        if number not in self._versions:
            parameters = (await self._client.served(number)).parameters
            default = f"{self._section.triton.model}-{number}"
            self._versions[number] = parameters.get("model_version") or default
        return self._versions[number]

    def _check_queue(self, total: int) -> None:
        limit = self._section.batching.max_queue_tokens
        if total > limit:
            raise InvalidInput(
                "items", got=f"{total} tokens", allowed=f"at most {limit} tokens in one request"
            )
        if self._tokens_in_flight + total > limit:
            raise Overloaded(
                f"{self._tokens_in_flight} tokens are in flight to Triton, the limit is {limit}",
                retry_after_seconds=1.0,
            )

    def _seconds(self, deadline: float | None) -> float:
        longest = self._section.triton.timeout_seconds
        if deadline is None:
            return longest
        remaining = deadline - time.monotonic()
        if remaining <= _MIN_SECONDS:
            raise DeadlineExceeded("the deadline passed before the request was sent to Triton")
        return min(longest, remaining)


async def _indexed(sending: Coroutine[None, None, RemoteScores], part: Sequence[int]) -> RemoteScores:
    """Await a response; give a refusal the index of the caller's item."""
    try:
        return await sending
    except RemoteInvalidInput as error:
        if error.index is None or error.index >= len(part):
            raise
        message = f"items[{part[error.index]}]: got {error.got}, allowed: {error.allowed}"
        raise RemoteInvalidInput(message) from error


def _finite(score: float, index: int) -> float:
    if not math.isfinite(score):
        raise InternalError(f"Triton's model returned {score} for item {index}: its weights are damaged")
    return score


def _first(errors: BaseExceptionGroup[FairleadError]) -> FairleadError:
    """Return one of the errors: a mistake of the caller if there is one."""
    found: list[FairleadError] = [error for error in errors.exceptions if isinstance(error, FairleadError)]
    return next((error for error in found if isinstance(error, InvalidInput)), found[0])


async def connect(
    path: str, section: RewardSection, *, health_seconds: float = _HEALTH_SECONDS
) -> tuple[TritonReader, ServedModel]:
    """Wait until the server has the model, then load the tokenizer that it needs.

    Args:
        path: local folder or Hugging Face id of the model.
        section: limits and addresses.
        health_seconds: time between two attempts.

    Raises:
        ConfigError: the model is not a reward model, or not the one at `path`.
        ModelLoadError: the tokenizer cannot be loaded.
    """
    triton = section.triton
    async with _client(triton) as client:
        served = await retry(
            client.served,
            what=f"Triton's model {triton.model}",
            backoff=Backoff(health_seconds, health_seconds, jitter=0.0),
        )
    return await asyncio.to_thread(TritonReader, path, section, served), served


@asynccontextmanager
async def serving(
    reader: TritonReader,
    served: ServedModel,
    section: RewardSection,
    set_ready: Callable[[bool], None],
    *,
    health_seconds: float = _HEALTH_SECONDS,
) -> AsyncGenerator[TritonScoring]:
    """Yield a scoring whose readiness follows the server's.

    Args:
        reader: from `connect`.
        served: from `connect`.
        section: limits and addresses.
        set_ready: called with the server's readiness every `health_seconds`.
        health_seconds: time between two checks of it.
    """
    async with _client(section.triton) as client:
        scoring = TritonScoring(client, reader, section, served)
        following = asyncio.create_task(
            _follow_readiness(client, section.triton.model, set_ready, health_seconds)
        )
        try:
            yield scoring
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following


async def _follow_readiness(
    client: AsyncOpenInferenceClient,
    model: str,
    set_ready: Callable[[bool], None],
    health_seconds: float,
) -> None:
    previous: bool | None = None
    while True:
        ready = await client.is_ready(timeout_seconds=max(1.0, health_seconds))
        if ready is not previous:
            logger.log(
                logging.INFO if ready else logging.WARNING,
                "Triton's model %s is %s",
                model,
                "ready" if ready else "not ready: no request is scored",
            )
            previous = ready
        # Set every time: a value set before the server listens has no effect.
        set_ready(ready)
        await asyncio.sleep(health_seconds)


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
