"""One version on its way to a replica's cache: asks for a source, pulls, and leaves one that fails.

Between the store, which knows the wire, and the partial version, which verifies. Bytes that were verified are
never fetched twice, whoever sent them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Protocol

from fairlead import metrics
from fairlead.config.infrastructure import WeightsSection
from fairlead.errors import (
    CorruptWeights,
    FairleadError,
    NotFound,
    OutOfSpace,
    Overloaded,
    ReadOnlyDisk,
    Unavailable,
)
from fairlead.transports.weights.direct import Routes, connected
from fairlead.transports.weights.partial import Partial, PartialShard
from fairlead.types import WeightVersion
from fairlead.types.weights import ORIGIN, DirectOffer, FailedSource, SourceFailure

logger = logging.getLogger(__name__)

_MAX_PAUSE_SECONDS = 1.0


class Find(Protocol):
    """Asks the origin for a source."""

    async def __call__(self, version: WeightVersion, failed: list[FailedSource]) -> str:
        """Relay address, or ORIGIN; NotFound if the version has gone, Overloaded if all sources are taken."""
        ...


class Stream(Protocol):
    """Streams a range of a shard."""

    def __call__(
        self, version: WeightVersion, shard: str, *, offset: int, length: int
    ) -> AsyncGenerator[bytes | DirectOffer]:
        """Bytes from `offset` on, at most `length`, perhaps fewer; or an offer of all of them."""
        ...


class Download:
    """Fetches what is missing of a partial version."""

    def __init__(
        self,
        partial: Partial,
        *,
        find: Find,
        source: Callable[[str], AbstractAsyncContextManager[Stream]],
        routes: Routes,
        section: WeightsSection,
        counts: metrics.WeightsMetrics,
    ) -> None:
        self._partial = partial
        self._version = partial.manifest.version
        self._find = find
        self._source = source
        self._routes = routes
        self._section = section
        self._counts = counts
        self._failed: list[FailedSource] = []
        self._pauses = 0
        self._moved_at = time.monotonic()
        self._origin_lied = False
        self.sources: Counter[str] = Counter()
        """Bytes by relay address, for the log."""

    async def run(self) -> None:
        """Until all is there and verified.

        Raises:
            NotFound: if the version has gone from the origin.
            CorruptWeights: if the origin's own bytes do not match its manifest.
            OutOfSpace, ReadOnlyDisk: if the bytes cannot be written.
            FairleadError: what failed last, once nothing has come for `give_up_seconds`.
        """
        while self._partial.missing_bytes:
            try:
                address = await self._find(self._version, self._failed)
            except NotFound:
                raise
            except FairleadError as error:
                await self._pause(error)
                continue
            self._failed.clear()
            await self._pull_from(address)

    async def _pull_from(self, address: str) -> None:
        """All that is missing from one source, until it fails."""
        try:
            async with self._source(address) as stream:
                for shard in self._partial.shards.values():
                    while not shard.complete:
                        await self._pull(stream, shard, address)
        except (OutOfSpace, ReadOnlyDisk):
            raise
        except CorruptWeights as error:
            self._counts.verification_failures.labels(_kind(address)).inc()
            if address == ORIGIN and self._origin_lied:
                raise
            self._origin_lied = self._origin_lied or address == ORIGIN
            self._note(address, SourceFailure.CORRUPT, error)
        except NotFound as error:
            if address == ORIGIN:
                raise NotFound(f"weights {self._version} have gone from the origin") from error
            self._note(address, SourceFailure.BROKEN, error)
        except (FairleadError, TimeoutError) as error:
            self._note(address, SourceFailure.BROKEN, error)
            await self._pause(error)

    async def _pull(self, stream: Stream, shard: PartialShard, address: str) -> None:
        """One range of a shard."""
        begin = shard.verified_bytes
        chunks = stream(self._version, shard.shard.name, offset=begin, length=shard.shard.size_bytes - begin)
        try:
            async with aclosing(chunks):
                while True:
                    async with asyncio.timeout(self._section.stall_seconds):
                        data = await anext(chunks, None)
                    if data is None:
                        break
                    if not isinstance(data, DirectOffer):
                        self._count(address, len(data))
                        await shard.write(data)
                    elif not await self._receive(data, shard, address):
                        return
            await shard.settle()
        finally:
            await shard.rewind()
            if shard.verified_bytes > begin:
                self._moved_at = time.monotonic()
                self._pauses = 0
        if shard.verified_bytes == begin:
            raise Unavailable(f"{address or 'the origin'} ended without a piece of {shard.shard.name}")

    async def _receive(self, offer: DirectOffer, shard: PartialShard, address: str) -> bool:
        """What is offered. False if it could not be had: it is then asked for over gRPC."""
        try:
            async with connected(offer, stall_seconds=self._section.stall_seconds) as connection:
                await shard.receive(connection, partial(self._count, address))
        except Unavailable as error:
            self._routes.failed(address, error)
            return False
        return True

    def _count(self, address: str, length: int) -> None:
        self._counts.fetched_bytes.labels(_kind(address)).inc(length)
        self.sources[address] += length

    def _note(self, address: str, failure: SourceFailure, error: Exception) -> None:
        self._counts.source_failures.labels(_kind(address), failure.value).inc()
        name, why = address or "the origin", str(error) or "it sent nothing for too long"
        logger.warning("weights %s: %s is left: %s", self._version, name, why)
        self._failed.append(FailedSource(address, failure))

    async def _pause(self, error: Exception) -> None:
        """Waits before the next source is asked for; gives up when nothing has come for too long."""
        if time.monotonic() - self._moved_at > self._section.give_up_seconds:
            raise error
        self._pauses += 1
        bound = min(_MAX_PAUSE_SECONDS, 0.05 * 2.0 ** min(self._pauses, 10))
        least = error.retry_after_seconds if isinstance(error, Overloaded) else 0.0
        await asyncio.sleep(least + random.uniform(0, bound))


def _kind(address: str) -> str:
    return "peer" if address != ORIGIN else "origin"
