"""Servicer of the weights service: manifests from the store, sources from the registry, bytes of shards."""

from __future__ import annotations

import asyncio

from fairlead import codec
from fairlead.errors import NotFound
from fairlead.transports.weights import manifest as manifests
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.transports.weights.sender import Sender
from fairlead.transports.weights.shard_servicer import Context, ShardServicer
from fairlead.v1 import weight_service_pb2 as pb
from services.runtime.wire_limits import WireLimits
from services.weights.registry import Registry

_MAX_NAME_BYTES = 1_000
"""Limit on the id and the address of a replica, and on the name of a shard."""
_MAX_VERSIONS = 256
"""Limit on the versions that a replica reports; it keeps a few."""
_MAX_FAILURES = 256
"""Limit on the failed sources that a replica reports in one call; each is logged."""


def wire_limits() -> WireLimits:
    """Return what a request may contain."""
    return WireLimits(
        entries={
            "fairlead.v1.WeightReplica.versions": _MAX_VERSIONS,
            "fairlead.v1.FindWeightSourceRequest.failed": _MAX_FAILURES,
        },
        max_fields=4 * (_MAX_VERSIONS + _MAX_FAILURES),
        max_text_bytes=_MAX_NAME_BYTES,
        names=frozenset({"fairlead.v1.FetchShardRequest.shard"}),
    )


class WeightServicer(ShardServicer):
    """Implements fairlead.v1.WeightService as the origin."""

    def __init__(self, store: FilesystemWeightStore, registry: Registry, sender: Sender) -> None:
        super().__init__(sender)
        self._store = store
        self._registry = registry

    async def GetLatestManifest(
        self, request: pb.GetLatestManifestRequest, context: Context
    ) -> pb.GetLatestManifestResponse:
        """Return the newest valid version; its manifest only if the caller does not have it."""
        if request.HasField("replica"):
            self._registry.report(codec.weight_replica_from_pb(request.replica))
        manifest = await asyncio.to_thread(self._store.latest)
        if manifest is None:
            return pb.GetLatestManifestResponse()
        response = pb.GetLatestManifestResponse(version=codec.version_to_pb(manifest.version))
        if not request.HasField("known") or codec.version_from_pb(request.known) != manifest.version:
            response.manifest = manifests.encode(manifest)
        return response

    async def ListWeightVersions(
        self, request: pb.ListWeightVersionsRequest, context: Context
    ) -> pb.ListWeightVersionsResponse:
        """Return the versions in the store."""
        versions = await asyncio.to_thread(self._store.versions)
        return pb.ListWeightVersionsResponse(versions=map(codec.version_to_pb, versions))

    async def FindWeightSource(
        self, request: pb.FindWeightSourceRequest, context: Context
    ) -> pb.FindWeightSourceResponse:
        """Return a source of the bytes of a version."""
        version = codec.version_from_pb(request.version)
        failed = codec.failed_sources_from_pb(request.failed)
        held = await asyncio.to_thread(self._store.versions)
        if version not in held:
            names = ", ".join(map(str, held)) or "none"
            raise NotFound(f"weights {version} are not in the store; versions in it: {names}")
        source = self._registry.find(codec.weight_replica_from_pb(request.replica), version, failed)
        return pb.FindWeightSourceResponse(relay_address=source)
