"""The weight store as replicas without a shared volume see it: manifests from the origin, bytes from anyone.

Implements WeightSource over the weights service. What was fetched lies in a cache of verified versions, which
the replica relays in turn. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from grpc import aio

from fairlead import codec, metrics
from fairlead.config.infrastructure import WeightsSection
from fairlead.errors import FairleadError, NotFound
from fairlead.rpc.credentials import Credentials, host_of
from fairlead.rpc.replicas import Replicas
from fairlead.rpc.retry import RetryPolicy
from fairlead.transports.weights import manifest as manifests
from fairlead.transports.weights.base import Manifest
from fairlead.transports.weights.cache import WeightCache
from fairlead.transports.weights.direct import Routes
from fairlead.transports.weights.download import Download, Stream
from fairlead.types import WeightVersion
from fairlead.types.weights import ORIGIN, DirectOffer, FailedSource, WeightReplica
from fairlead.v1 import weight_service_pb2 as pb
from fairlead.v1 import weight_service_pb2_grpc as pb_grpc

logger = logging.getLogger(__name__)

_HEALTH = "liveness"
"""A replica that has no weights yet, and is therefore not ready, relays what it has got of them."""
_RANGE_BYTES = 256 << 20
"""Asked for in one call, so that every call has a deadline; the next goes on behind it."""
_ONCE = RetryPolicy(max_attempts=1)
_ASK_SECONDS = 10.0


class GrpcWeightStore:
    """Follows one origin."""

    def __init__(
        self,
        section: WeightsSection,
        cache: WeightCache,
        counts: metrics.WeightsMetrics,
        *,
        credentials: Callable[[Sequence[str]], Credentials] = Credentials,
    ) -> None:
        """
        Args:
            section: where the origin is, and limits.
            cache: where versions go.
            counts: what is counted.
            credentials: makes, for addresses, what is shown to the origin and to peers, and who is trusted.

        Raises:
            ConfigError: for an address that is none, or credentials that cannot be used.
        """
        self._section = section
        self._cache = cache
        self._counts = counts
        self._credentials = credentials
        self._replica_id = secrets.token_hex(8)
        self._latest: Manifest | None = None
        self._origin = self._connect(section.addresses)
        self._routes = Routes(wanted=section.direct)
        self.relay_address = ""
        """`host:port` at which the cache is served; set once it is."""

    async def close(self) -> None:
        """Closes the connections."""
        await self._origin.close()

    async def latest(self) -> Manifest | None:
        """Manifest of the newest valid version; see WeightSource.latest.

        Raises:
            FairleadError: Unavailable and others if the origin does not answer.
            CorruptWeights: if its manifest is damaged.
        """
        known = codec.version_to_pb(self._latest.version) if self._latest else None
        request = pb.GetLatestManifestRequest(replica=self._myself(), known=known)
        response = await self._origin.call(
            lambda stub: stub.GetLatestManifest, request, timeout_seconds=_ASK_SECONDS
        )
        if not response.HasField("version"):
            self._latest = None
        elif response.manifest:
            version = codec.version_from_pb(response.version)
            where = Path(str(version)) / manifests.FILE_NAME
            self._latest = manifests.decode(response.manifest, version, where=where)
        return self._latest

    async def fetch(self, manifest: Manifest) -> Path:
        """Folder with the verified files of a version; see WeightSource.fetch.

        What an earlier attempt left is used; peers are sent what has been verified while the rest comes in.
        """
        found = self._cache.find(manifest.version)
        if found is not None:
            return found
        start = time.monotonic()
        partial = await asyncio.to_thread(self._cache.begin, manifest)
        try:
            download = Download(
                partial,
                find=self._find,
                source=self._source,
                routes=self._routes,
                section=self._section,
                counts=self._counts,
            )
            async with self._heard_of():
                await download.run()
            folder = await asyncio.to_thread(self._cache.finish, partial)
        finally:
            self._cache.end(partial)
        seconds = time.monotonic() - start
        self._counts.fetch_seconds.observe(seconds)
        fields = {"seconds": round(seconds, 3), "sources": download.sources}
        logger.info("weights %s fetched and verified", manifest.version, extra=fields)
        return folder

    async def _find(self, version: WeightVersion, failed: Sequence[FailedSource]) -> str:
        """Where the bytes are to be had, as the origin says."""
        request = pb.FindWeightSourceRequest(
            replica=self._myself(),
            version=codec.version_to_pb(version),
            failed=map(codec.failed_source_to_pb, failed),
        )
        try:
            response = await self._origin.call(
                lambda stub: stub.FindWeightSource, request, timeout_seconds=_ASK_SECONDS
            )
        except NotFound as error:
            raise NotFound(f"weights {version} have gone from the origin") from error
        return response.relay_address

    @asynccontextmanager
    async def _source(self, address: str) -> AsyncIterator[Stream]:
        """A connection to a source: a function that streams (version, shard, offset, length) of it."""
        replicas = self._origin if address == ORIGIN else self._connect([address])
        host = _host(self._section.addresses if address == ORIGIN else [address])

        async def stream(
            version: WeightVersion, shard: str, *, offset: int, length: int
        ) -> AsyncGenerator[bytes | DirectOffer]:
            request = pb.FetchShardRequest(
                version=codec.version_to_pb(version),
                shard=shard,
                offset_bytes=offset,
                limit_bytes=min(length, _RANGE_BYTES),
                direct=bool(host) and self._routes.is_open(address),
            )
            async for response in replicas.stream(lambda stub: stub.FetchShard, request):
                offered = response.HasField("direct")
                yield codec.direct_offer_from_pb(response.direct, host) if offered else response.data

        try:
            yield stream
        finally:
            if replicas is not self._origin:
                await replicas.close()

    @asynccontextmanager
    async def _heard_of(self) -> AsyncIterator[None]:
        """While a fetch lasts the origin hears of this replica in time to keep its place."""

        async def tell() -> None:
            while True:
                await asyncio.sleep(self._section.lease_seconds / 4)
                with suppress(FairleadError):
                    await self.latest()

        telling = asyncio.create_task(tell())
        try:
            yield
        finally:
            telling.cancel()

    def _myself(self) -> pb.WeightReplica:
        replica = WeightReplica(self._replica_id, self.relay_address, self._cache.versions)
        return codec.weight_replica_to_pb(replica)

    def _connect(self, addresses: Sequence[str]) -> Replicas[pb_grpc.WeightServiceAsyncStub]:
        def stub(channel: aio.Channel) -> pb_grpc.WeightServiceAsyncStub:
            return pb_grpc.WeightServiceStub(channel)

        return Replicas(
            addresses,
            stub,
            service="weights",
            timeout_seconds=self._section.timeout_seconds,
            retry=_ONCE,
            credentials=self._credentials,
            health=_HEALTH,
        )


def _host(addresses: Sequence[str]) -> str:
    """The one host that these name, at which another port can be found; empty if there are several."""
    hosts = set(map(host_of, addresses))
    return hosts.pop() if len(hosts) == 1 else ""
