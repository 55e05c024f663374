"""The download of one version to a replica's cache: finds a source, and another one if it fails.

Called by the replica's weight source. The wire is in WeightServiceClient; verification is in the partial
version. Verified bytes are never fetched again, from any source.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

from grpc import aio

from fairlead import codec, metrics
from fairlead.backoff import Backoff
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
from fairlead.rpc.credentials import Credentials, host_of
from fairlead.rpc.replicas import Replicas
from fairlead.rpc.retry import RetryPolicy
from fairlead.transports.weights import manifest as manifests
from fairlead.transports.weights.base import Manifest
from fairlead.transports.weights.direct import DirectRoutes, connected
from fairlead.transports.weights.partial import PartialShard, PartialVersion
from fairlead.types import WeightVersion
from fairlead.types.weights import ORIGIN, DirectOffer, FailedSource, SourceFailure, WeightReplica
from fairlead.v1 import weight_service_pb2 as pb
from fairlead.v1 import weight_service_pb2_grpc as pb_grpc

logger = logging.getLogger(__name__)

_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=1.0, jitter=1.0)
_HEALTH = "liveness"
"""Not "readiness": a replica that has no weights yet is not ready, but relays what it has fetched."""
_RANGE_BYTES = 256 << 20
"""Most bytes of one call, so that every call has a deadline; the next call continues after them."""
_ONE_ATTEMPT = RetryPolicy(max_attempts=1)
_REPLY_SECONDS = 10.0


class ShardSource:
    """A connection to a source of shard bytes: the origin or a replica that relays."""

    def __init__(
        self,
        replicas: Replicas[pb_grpc.WeightServiceAsyncStub],
        routes: DirectRoutes,
        *,
        address: str,
        host: str,
    ) -> None:
        """
        Args:
            replicas: the connection.
            routes: whether to ask for direct connections.
            address: relay address of the source, or ORIGIN.
            host: host of its direct port; empty if that cannot be known.
        """
        self.address = address
        self._replicas = replicas
        self._routes = routes
        self._host = host

    async def stream(
        self, version: WeightVersion, shard: str, *, offset: int, length: int
    ) -> AsyncGenerator[bytes | DirectOffer]:
        """Yield bytes of a shard from `offset`, at most `length`; or one offer of a direct connection."""
        request = pb.FetchShardRequest(
            version=codec.version_to_pb(version),
            shard=shard,
            offset_bytes=offset,
            limit_bytes=min(length, _RANGE_BYTES),
            direct=bool(self._host) and self._routes.is_open(self.address),
        )
        async for response in self._replicas.stream(lambda stub: stub.FetchShard, request):
            offered = response.HasField("direct")
            yield codec.direct_offer_from_pb(response.direct, self._host) if offered else response.data


class WeightServiceClient:
    """Calls to the weights service, which is the origin, and to replicas that relay."""

    def __init__(self, section: WeightsSection, credentials: Callable[[Sequence[str]], Credentials]) -> None:
        """
        Args:
            section: address of the origin, and timeouts.
            credentials: builds the credentials for a list of addresses.

        Raises:
            ConfigError: if an address is invalid, or the credentials cannot be used.
        """
        self.relay_address = ""
        """`host:port` at which this replica relays; empty while it does not."""
        self.routes = DirectRoutes(enabled=section.direct)
        """The sources that are asked for direct connections."""
        self._section = section
        self._credentials = credentials
        self._replica_id = secrets.token_hex(8)
        self._latest: Manifest | None = None
        self._origin = self._connect(section.addresses)

    async def close(self) -> None:
        """Close the connection to the origin."""
        await self._origin.close()

    async def latest(self, *, held: Sequence[WeightVersion]) -> Manifest | None:
        """Return the manifest of the origin's newest valid version, None if it has none.

        Also reports to the origin that this replica is alive and which complete versions it holds. The origin
        sends a manifest only if it is not the one of the last reply.

        Raises:
            FairleadError: Unavailable and others if the origin does not answer.
            CorruptWeights: if the manifest is damaged.
        """
        known = codec.version_to_pb(self._latest.version) if self._latest else None
        request = pb.GetLatestManifestRequest(replica=self._replica(held), known=known)
        response = await self._origin.call(
            lambda stub: stub.GetLatestManifest, request, timeout_seconds=_REPLY_SECONDS
        )
        if not response.HasField("version"):
            self._latest = None
        elif response.manifest:
            version = codec.version_from_pb(response.version)
            where = Path(str(version)) / manifests.FILE_NAME
            self._latest = manifests.decode(response.manifest, version, where=where)
        return self._latest

    async def find_source(
        self, version: WeightVersion, *, failed: Sequence[FailedSource], held: Sequence[WeightVersion]
    ) -> str:
        """Ask the origin for a source of a version's bytes. Return its relay address, or ORIGIN.

        Raises:
            NotFound: if the origin no longer has the version.
            Overloaded: if all sources are in use.
        """
        request = pb.FindWeightSourceRequest(
            replica=self._replica(held),
            version=codec.version_to_pb(version),
            failed=map(codec.failed_source_to_pb, failed),
        )
        try:
            response = await self._origin.call(
                lambda stub: stub.FindWeightSource, request, timeout_seconds=_REPLY_SECONDS
            )
        except NotFound as error:
            raise _gone(version) from error
        return response.relay_address

    @asynccontextmanager
    async def source(self, address: str) -> AsyncIterator[ShardSource]:
        """Connect to a source by its relay address, or to the origin."""
        if address == ORIGIN:
            host = _common_host(self._section.addresses)
            yield ShardSource(self._origin, self.routes, address=address, host=host)
            return
        replicas = self._connect([address])
        try:
            yield ShardSource(replicas, self.routes, address=address, host=_common_host([address]))
        finally:
            await replicas.close()

    def _replica(self, held: Sequence[WeightVersion]) -> pb.WeightReplica:
        return codec.weight_replica_to_pb(WeightReplica(self._replica_id, self.relay_address, tuple(held)))

    def _connect(self, addresses: Sequence[str]) -> Replicas[pb_grpc.WeightServiceAsyncStub]:
        def stub(channel: aio.Channel) -> pb_grpc.WeightServiceAsyncStub:
            return pb_grpc.WeightServiceStub(channel)

        return Replicas(
            addresses,
            stub,
            service="weights",
            timeout_seconds=self._section.timeout_seconds,
            retry=_ONE_ATTEMPT,
            credentials=self._credentials,
            health=_HEALTH,
        )


class Download:
    """Fetches the missing bytes of a partial version."""

    def __init__(
        self,
        version: PartialVersion,
        client: WeightServiceClient,
        weights_metrics: metrics.WeightsMetrics,
        *,
        held: Callable[[], Sequence[WeightVersion]],
        stall_seconds: float,
        give_up_seconds: float,
    ) -> None:
        """
        Args:
            version: where the bytes are written.
            client: of the origin and the sources.
            weights_metrics: metrics of the transfers.
            held: returns the complete versions of this replica, to report them to the origin.
            stall_seconds: a source that sends nothing for this time is replaced.
            give_up_seconds: the download fails if no source sends a byte for this time.
        """
        self._partial = version
        self._version = version.manifest.version
        self._client = client
        self._stall_seconds = stall_seconds
        self._give_up_seconds = give_up_seconds
        self._metrics = weights_metrics
        self._held = held
        self._failed: list[FailedSource] = []
        self._pauses = 0
        self._progress_at = time.monotonic()
        self._origin_was_corrupt = False
        self.sources: Counter[str] = Counter()
        """Bytes by relay address, for the log."""

    async def run(self) -> None:
        """Fetch until all bytes are written and verified.

        Raises:
            NotFound: if the origin no longer has the version.
            CorruptWeights: if the origin's own bytes do not match its manifest.
            OutOfSpace, ReadOnlyDisk: if the bytes cannot be written.
            FairleadError: the last error, once nothing has arrived for `give_up_seconds`.
        """
        while self._partial.missing_bytes:
            try:
                address = await self._client.find_source(
                    self._version, failed=self._failed, held=self._held()
                )
            except NotFound:
                raise
            except FairleadError as error:
                await self._pause(error)
                continue
            self._failed.clear()
            await self._pull_from(address)

    async def _pull_from(self, address: str) -> None:
        """Fetch everything that is missing from one source, until it fails."""
        try:
            async with self._client.source(address) as source:
                for shard in self._partial.shards.values():
                    while not shard.complete:
                        await self._pull(source, shard)
        except (OutOfSpace, ReadOnlyDisk):
            raise
        except CorruptWeights as error:
            self._metrics.verification_failures.labels(_kind(address)).inc()
            if address == ORIGIN and self._origin_was_corrupt:
                raise
            self._origin_was_corrupt = self._origin_was_corrupt or address == ORIGIN
            self._record_failure(address, SourceFailure.CORRUPT, error)
        except NotFound as error:
            if address == ORIGIN:
                raise _gone(self._version) from error
            self._record_failure(address, SourceFailure.BROKEN, error)
        except (FairleadError, TimeoutError) as error:
            self._record_failure(address, SourceFailure.BROKEN, error)
            await self._pause(error)

    async def _pull(self, source: ShardSource, shard: PartialShard) -> None:
        """Fetch one range of a shard."""
        begin = shard.verified_bytes
        chunks = source.stream(
            self._version, shard.shard.name, offset=begin, length=shard.shard.size_bytes - begin
        )
        try:
            async with aclosing(chunks):
                while True:
                    async with asyncio.timeout(self._stall_seconds):
                        data = await anext(chunks, None)
                    if data is None:
                        break
                    if not isinstance(data, DirectOffer):
                        self._count(source.address, len(data))
                        await shard.write(data)
                    elif not await self._receive(data, shard, source.address):
                        return
            await shard.settle()
        finally:
            await shard.rewind()
            if shard.verified_bytes > begin:
                self._progress_at = time.monotonic()
                self._pauses = 0
        if shard.verified_bytes == begin:
            raise Unavailable(
                f"{source.address or 'the origin'} ended the stream before a piece of {shard.shard.name} "
                "was complete"
            )

    async def _receive(self, offer: DirectOffer, shard: PartialShard, address: str) -> bool:
        """Receive over a direct connection. Return False if it failed; the next range then uses gRPC."""
        try:
            async with connected(offer, stall_seconds=self._stall_seconds) as connection:
                await shard.receive(connection, partial(self._count, address))
        except Unavailable as error:
            self._client.routes.failed(address, error)
            return False
        return True

    def _count(self, address: str, length: int) -> None:
        self._metrics.fetched_bytes.labels(_kind(address)).inc(length)
        self.sources[address] += length

    def _record_failure(self, address: str, failure: SourceFailure, error: Exception) -> None:
        self._metrics.source_failures.labels(_kind(address), failure.value).inc()
        reason = str(error) or f"it sent nothing for {self._stall_seconds:g} s"
        logger.warning(
            "weights %s: no longer fetching from %s: %s", self._version, address or "the origin", reason
        )
        self._failed.append(FailedSource(address, failure))

    async def _pause(self, error: Exception) -> None:
        """Wait before the next source is requested; raise the error if nothing has arrived for too long.

        Not `fairlead.backoff.retry`: what limits the wait is the time since the last progress.
        """
        if time.monotonic() - self._progress_at > self._give_up_seconds:
            raise error
        self._pauses += 1
        least = error.retry_after_seconds if isinstance(error, Overloaded) else 0.0
        await asyncio.sleep(least + _BACKOFF.seconds(self._pauses))


def _gone(version: WeightVersion) -> NotFound:
    return NotFound(f"the origin no longer has weights {version}")


def _kind(address: str) -> str:
    return "peer" if address != ORIGIN else "origin"


def _common_host(addresses: Sequence[str]) -> str:
    """Return the one host of these addresses, which also has the direct port; empty if there are several."""
    hosts = set(map(host_of, addresses))
    return hosts.pop() if len(hosts) == 1 else ""
