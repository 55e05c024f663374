"""Wire in, wire out for bytes of weights: what the weights service and a replica that relays have in common.

The rest of fairlead.v1.WeightService stands with each of them.
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
"""For health and reflection."""

Context: TypeAlias = "aio.ServicerContext[Any, Any]"


class ShardServicer(pb_grpc.WeightServiceServicer):
    """FetchShard of fairlead.v1.WeightService over a shelf."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def add_to(self, server: aio.Server) -> None:
        """Registers the servicer."""
        pb_grpc.add_WeightServiceServicer_to_server(self, server)

    async def FetchShard(
        self, request: pb.FetchShardRequest, context: Context
    ) -> AsyncIterator[pb.FetchShardResponse]:
        """Bytes of a shard, verified by whoever asked for them."""
        async with aclosing(self._sender.send(request)) as responses:
            async for response in responses:
                yield response
