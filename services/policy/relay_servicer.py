"""Serve the bytes of weight shards from a policy replica to other replicas.

Manifests come only from the weights service; a relaying replica refuses to serve them.
"""

from __future__ import annotations

from typing import NoReturn

from fairlead.errors import NotOffered
from fairlead.transports.weights.shard_servicer import Context, ShardServicer
from fairlead.v1 import weight_service_pb2 as pb


class RelayServicer(ShardServicer):
    """FetchShard of fairlead.v1.WeightService from the replica's cache of verified shards."""

    async def GetLatestManifest(self, request: pb.GetLatestManifestRequest, context: Context) -> NoReturn:
        """Refuse the call."""
        _refuse()

    async def ListWeightVersions(self, request: pb.ListWeightVersionsRequest, context: Context) -> NoReturn:
        """Refuse the call."""
        _refuse()

    async def FindWeightSource(self, request: pb.FindWeightSourceRequest, context: Context) -> NoReturn:
        """Refuse the call."""
        _refuse()


def _refuse() -> NoReturn:
    raise NotOffered(
        "this replica serves only shards: send the call to the weights service (weights.addresses)"
    )
