"""Wire in, wire out for what a policy replica passes on to its peers: bytes of weights, nothing else.

Manifests come from the origin alone; a replica that is asked for one says so.
"""

from __future__ import annotations

from typing import NoReturn

from fairlead.errors import NotOffered
from fairlead.transports.weights.shard_servicer import Context, ShardServicer
from fairlead.v1 import weight_service_pb2 as pb


class RelayServicer(ShardServicer):
    """FetchShard of fairlead.v1.WeightService over a replica's cache, verified here before."""

    async def GetLatestManifest(self, request: pb.GetLatestManifestRequest, context: Context) -> NoReturn:
        """Refused."""
        _ask_the_origin()

    async def ListWeightVersions(self, request: pb.ListWeightVersionsRequest, context: Context) -> NoReturn:
        """Refused."""
        _ask_the_origin()

    async def FindWeightSource(self, request: pb.FindWeightSourceRequest, context: Context) -> NoReturn:
        """Refused."""
        _ask_the_origin()


def _ask_the_origin() -> NoReturn:
    raise NotOffered("this replica relays bytes alone: ask the weights service (weights.addresses)")
