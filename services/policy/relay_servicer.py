"""Wire in, wire out for what a policy replica passes on to its peers: bytes of weights, nothing else.

Manifests come from the origin alone; a replica that is asked for one says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn

from grpc import aio

from fairlead.errors import NotOffered
from fairlead.transports.weights.sender import Sender
from fairlead.v1 import weight_service_pb2 as pb
from fairlead.v1 import weight_service_pb2_grpc as pb_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["WeightService"].full_name
"""For health and reflection."""

_Context = aio.ServicerContext[Any, Any]


class RelayServicer(pb_grpc.WeightServiceServicer):
    """FetchShard of fairlead.v1.WeightService over a replica's cache."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def add_to(self, server: aio.Server) -> None:
        """Registers the servicer."""
        pb_grpc.add_WeightServiceServicer_to_server(self, server)

    async def FetchShard(
        self, request: pb.FetchShardRequest, context: _Context
    ) -> AsyncIterator[pb.FetchShardResponse]:
        """Bytes of a shard, verified here."""
        async with aclosing(self._sender.send(request)) as responses:
            async for response in responses:
                yield response

    async def GetLatestManifest(self, request: pb.GetLatestManifestRequest, context: _Context) -> NoReturn:
        """Refused."""
        _ask_the_origin()

    async def ListWeightVersions(self, request: pb.ListWeightVersionsRequest, context: _Context) -> NoReturn:
        """Refused."""
        _ask_the_origin()

    async def FindWeightSource(self, request: pb.FindWeightSourceRequest, context: _Context) -> NoReturn:
        """Refused."""
        _ask_the_origin()


def _ask_the_origin() -> NoReturn:
    raise NotOffered("this replica relays bytes alone: ask the weights service (weights.addresses)")
