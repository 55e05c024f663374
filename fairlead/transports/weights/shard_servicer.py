"""Serve the bytes of weight shards over gRPC: the part that the weights service and relaying replicas share.

The subclasses in `services.weights` and `services.policy` serve the other RPCs of fairlead.v1.WeightService.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, TypeAlias

from grpc import aio

from fairlead.transports.weights.sender import Sender
from fairlead.v1 import weight_service_pb2 as pb
from fairlead.v1 import weight_service_pb2_grpc as pb_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["WeightService"].full_name
"""Full name of the service, for health and reflection."""

Context: TypeAlias = "aio.ServicerContext[Any, Any]"


class ShardServicer(pb_grpc.WeightServiceServicer):
    """Implements FetchShard of fairlead.v1.WeightService with a sender."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def add_to(self, server: aio.Server) -> None:
        """Register the servicer."""
        pb_grpc.add_WeightServiceServicer_to_server(self, server)

    async def FetchShard(  # noqa: N802
        self, request: pb.FetchShardRequest, context: Context
    ) -> AsyncIterator[pb.FetchShardResponse]:
        """Stream the requested bytes of a shard; the receiver verifies them."""
        async with aclosing(self._sender.send(request)) as responses:
            async for response in responses:
                yield response
