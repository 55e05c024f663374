"""The worker's side of the Redis queue: claims, leases, finishing. One instance per worker process.

Every write is one Lua script (`lua/`); this module encodes, decodes and waits. It knows nothing about
services or the ledger.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from fairlead.codec import decode_task, encode_outcome
from fairlead.config.infrastructure import QueueSection
from fairlead.errors import CorruptData, InvalidInput, SchemaTooNew
from fairlead.transports.rollouts.base import UNDECODABLE, Claim, Sending
from fairlead.transports.rollouts.redis_connection import (
    RETURNED,
    Keys,
    address,
    check_server,
    check_url,
    client_options,
    errors_of,
    script,
)
from fairlead.types import DeadLetter, Outcome, PromptTask, SamplingParams, TaskResult, WeightVersion

logger = logging.getLogger(__name__)

_SCRIPTS = ("claim", "renew", "finish", "fail", "release", "leave")
_CONSUMER_GONE_MS = 3_600_000
_LONGEST_POLL_SECONDS = 0.5
_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Delivery:
    """A prompt entry that was delivered to this worker and is not decoded yet."""

    entry_id: str
    """ID in the prompts stream."""
    deliveries: int
    """How often this sending was delivered, including this delivery."""
    failures: int
    """Explicit failures of this sending so far."""
    task_id: int
    """Task of the entry."""
    sending: Sending
    """The sending of the task."""
    payload: bytes
    """The encoded task."""

    def claim(self) -> Claim:
        """Decode the task and return the claim.

        Raises:
            CorruptData: if the task cannot be decoded, or its ID differs from that of the entry.
            SchemaTooNew: if the task was written by a newer Fairlead.
        """
        task = decode_task(self.payload)
        if task.task_id != self.task_id:
            raise CorruptData(f"entry {self.entry_id} of task {self.task_id} contains task {task.task_id}")
        return Claim(self.entry_id, task, self.sending, self.deliveries, self.failures)

    def claim_without_prompt(self) -> Claim:
        """Return a claim with an empty prompt, to dead-letter an entry whose task cannot be decoded."""
        task = PromptTask(self.task_id, (), "", SamplingParams(), WeightVersion(0, 0))
        return Claim(self.entry_id, task, self.sending, self.deliveries, self.failures)


class RedisWorkerQueue:
    """WorkerQueue over Redis Streams; see `base.WorkerQueue`."""

    def __init__(
        self,
        client: Redis,
        section: QueueSection,
        *,
        run: str,
        consumer: str,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
    ) -> None:
        if not consumer or consumer == RETURNED:
            raise InvalidInput("consumer", got=consumer, allowed=f"a name other than {RETURNED!r}")
        self._client = client
        self._section = section
        self._keys = Keys(run)
        self._consumer = consumer
        self._on_dead_letter = on_dead_letter
        self._where = address(section.redis_url)
        self._scripts = {name: client.register_script(script(name)) for name in _SCRIPTS}

    @classmethod
    async def connect(
        cls,
        section: QueueSection,
        *,
        run: str,
        consumer: str,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
    ) -> RedisWorkerQueue:
        """Connect to Redis and check the server.

        Args:
            section: address of Redis, and limits.
            run: name of the run.
            consumer: name of this worker, unique in the run.
            on_dead_letter: called with every dead letter that `claim` itself writes.

        Raises:
            ConfigError: if the URL is invalid.
            QueueUnavailable: if Redis does not answer.
            QueueMisconfigured: if Redis rejects the credentials or would lose work.
        """
        url = check_url(section)
        # When many tasks end at once, calls wait for a free connection: Redis is no faster with more of them.
        pool = BlockingConnectionPool.from_url(
            url, max_connections=_CONNECTIONS, retry=Retry(NoBackoff(), 0), **client_options(section)
        )
        client = Redis.from_pool(pool)
        try:
            with errors_of(address(url)):
                info = await client.info()
                settings: Mapping[str, object] = {}
                with suppress(redis.ResponseError):
                    settings = cast("Mapping[str, object]", await client.config_get("appendfsync"))
            check_server(info, settings, where=address(url))
            with errors_of(address(url)):
                await client.exists(Keys(run).fence)  # a node of a cluster may refer to another one
            return cls(client, section, run=run, consumer=consumer, on_dead_letter=on_dead_letter)
        except BaseException:
            await client.aclose()
            raise

    async def claim(self, *, count: int, block_seconds: float) -> Sequence[Claim]:
        """See `WorkerQueue.claim`.

        Raises:
            SchemaTooNew: for an entry of a newer Fairlead; it and the rest of the batch are given back.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + block_seconds
        while True:
            claims, last = await self._claim_now(count)
            remaining = deadline - loop.time()
            if claims or remaining <= 0:
                return claims
            # XREAD does not return for entries that are given back, so the wait is split into short ones.
            await self._wait_for_new(
                last, min(remaining, self._section.lease_seconds / 3, _LONGEST_POLL_SECONDS)
            )

    async def renew(self, claims: Iterable[Claim]) -> frozenset[str]:
        """See `WorkerQueue.renew`. A sending that another worker closed counts as lost."""
        arguments: list[str | int] = [self._consumer]
        for claim in claims:
            arguments += [claim.entry_id, claim.task.task_id, claim.sending.incarnation, claim.sending.number]
        if len(arguments) == 1:
            return frozenset()
        return frozenset(entry.decode() for entry in await self._run("renew", arguments))

    async def finish(self, claim: Claim, result: TaskResult) -> bool:
        """See `WorkerQueue.finish`. Safe to repeat."""
        return bool(await self._run("finish", [*_sending(claim), self._outcome(claim, result)]))

    async def fail(self, claim: Claim, letter: DeadLetter) -> bool:
        """See `WorkerQueue.fail`. Safe to repeat; counts only while this worker holds the lease."""
        arguments = [
            *_sending(claim),
            self._consumer,
            self._section.max_failures,
            self._outcome(claim, letter),
        ]
        return cast(int, await self._run("fail", arguments)) == 2

    async def release(self, claims: Iterable[Claim]) -> None:
        """See `WorkerQueue.release`. The delivery is subtracted from the count."""
        entries = [claim.entry_id for claim in claims]
        if entries:
            await self._run("release", [self._consumer, *entries])

    async def close(self) -> None:
        """See `WorkerQueue.close`."""
        try:
            await self._run("leave", [self._consumer, _CONSUMER_GONE_MS])
        finally:
            await self._client.aclose()

    async def _run(self, name: str, arguments: Sequence[str | int | bytes]) -> Any:  # noqa: ANN401 - the type of the reply depends on the script
        with errors_of(self._where):
            return await self._scripts[name](keys=self._keys.all(), args=arguments)

    async def _wait_for_new(self, last_delivered: bytes, seconds: float) -> None:
        with errors_of(self._where):
            await self._client.xread(
                {self._keys.prompts: last_delivered}, count=1, block=max(1, round(seconds * 1000))
            )

    async def _claim_now(self, count: int) -> tuple[list[Claim], bytes]:
        lease_ms = max(1, round(self._section.lease_seconds * 1000))
        raw_claims, unreadable, last = await self._run("claim", [self._consumer, lease_ms, count])
        for entry in unreadable:
            logger.error("dropped prompt entry %s: its fields cannot be read", entry.decode())
        claims: list[Claim] = []
        too_new: SchemaTooNew | None = None
        for raw in raw_claims:
            delivery = _delivery(raw)
            try:
                claim = delivery.claim()
            except SchemaTooNew as error:
                too_new = error
                continue
            except CorruptData as error:
                await self._dead_letter(delivery.claim_without_prompt(), DeadLetter(UNDECODABLE, str(error)))
                continue
            if claim.deliveries > self._section.max_deliveries:
                detail = f"delivered {claim.deliveries} times, allowed: {self._section.max_deliveries}"
                await self._dead_letter(claim, DeadLetter("too_many_deliveries", detail))
            else:
                claims.append(claim)
        if too_new is not None:
            await self._run("release", [self._consumer, *(raw[0] for raw in raw_claims)])
            raise too_new
        return claims, last

    async def _dead_letter(self, claim: Claim, letter: DeadLetter) -> None:
        logger.warning("task %d dead-lettered: %s: %s", claim.task.task_id, letter.reason, letter.detail)
        if await self.finish(claim, letter) and self._on_dead_letter is not None:
            self._on_dead_letter(letter)

    def _outcome(self, claim: Claim, result: TaskResult) -> bytes:
        return encode_outcome(Outcome(claim.task, result, self._consumer, claim.deliveries, claim.failures))


def _sending(claim: Claim) -> list[str | int | bytes]:
    return [claim.task.task_id, claim.sending.incarnation, claim.sending.number, claim.entry_id]


def _delivery(raw: Sequence[Any]) -> Delivery:
    entry, deliveries, failures, task_id, incarnation, number, payload = raw
    sending = Sending(int(incarnation), int(number))
    return Delivery(entry.decode(), deliveries, failures, int(task_id), sending, payload)
