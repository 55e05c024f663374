"""The WeightSource of a replica without a shared volume: manifests from the origin, bytes from any source.

The origin is the weights service; sources are the origin and replicas that relay. Fetched versions are kept
in a cache of verified versions, which the replica relays in turn. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fairlead import metrics
from fairlead.config.infrastructure import WeightsSection
from fairlead.errors import FairleadError
from fairlead.rpc.credentials import Credentials
from fairlead.transports.weights.base import LEASE_SECONDS, Manifest
from fairlead.transports.weights.cache import WeightCache
from fairlead.transports.weights.download import Download, WeightServiceClient

logger = logging.getLogger(__name__)

_GIVE_UP_SECONDS = 60.0
"""A fetch that receives nothing from any source for this time fails, which is logged; the replica tries again
later, and what has arrived is kept."""


class GrpcWeightSource:
    """Follows one origin; see `base.WeightSource`."""

    def __init__(
        self,
        section: WeightsSection,
        cache: WeightCache,
        weights_metrics: metrics.WeightsMetrics,
        *,
        credentials: Callable[[Sequence[str]], Credentials] = Credentials,
        give_up_seconds: float = _GIVE_UP_SECONDS,
    ) -> None:
        """
        Args:
            section: address of the origin, and limits.
            cache: where fetched versions are kept.
            weights_metrics: metrics of the transfers.
            credentials: builds the credentials for a list of addresses, of the origin or of a replica.
            give_up_seconds: a fetch fails if no source sends a byte for this time.

        Raises:
            ConfigError: if an address is invalid, or the credentials cannot be used.
        """
        self._section = section
        self._cache = cache
        self._metrics = weights_metrics
        self._client = WeightServiceClient(section, credentials)
        self._give_up_seconds = give_up_seconds

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def relay_at(self, address: str) -> None:
        """Report to the origin from now on that other replicas can fetch from this `host:port`."""
        self._client.relay_address = address

    async def latest(self) -> Manifest | None:
        """Return the manifest of the newest valid version; see `WeightSource.latest`.

        Raises:
            FairleadError: Unavailable and others if the origin does not answer.
            CorruptWeights: if its manifest is damaged.
        """
        return await self._client.latest(held=self._cache.versions)

    async def fetch(self, manifest: Manifest) -> Path:
        """Return a folder with the verified files of a version; see `WeightSource.fetch`.

        Continues an earlier attempt. Other replicas can fetch verified bytes while the rest is arriving.
        """
        found = self._cache.find(manifest.version)
        if found is not None:
            return found
        start = time.monotonic()
        partial = await asyncio.to_thread(self._cache.begin, manifest)
        try:
            download = Download(
                partial,
                self._client,
                self._metrics,
                held=lambda: self._cache.versions,
                stall_seconds=self._section.stall_seconds,
                give_up_seconds=self._give_up_seconds,
            )
            async with self._heartbeat():
                await download.run()
            folder = await asyncio.to_thread(self._cache.finish, partial)
        finally:
            self._cache.end(partial)
        seconds = time.monotonic() - start
        self._metrics.fetch_seconds.observe(seconds)
        sources = {source or "weights service": size for source, size in download.sources.items()}
        fields = {"seconds": round(seconds, 3), "sources": sources}
        logger.info("weights %s fetched and verified", manifest.version, extra=fields)
        return folder

    @asynccontextmanager
    async def _heartbeat(self) -> AsyncIterator[None]:
        """Renew this replica's lease at the origin while a fetch is running."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(LEASE_SECONDS / 4)
                with suppress(FairleadError):
                    await self.latest()

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()
