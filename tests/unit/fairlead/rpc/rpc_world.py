"""Real gRPC servers in this process with scripted responses, for tests of replicas and clients."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from grpc import aio
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config.infrastructure import KeysSection
from fairlead.errors import Unavailable
from fairlead.rpc.retry import RetryPolicy
from fairlead.v1 import policy_service_pb2, policy_service_pb2_grpc, tokens_pb2
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc
from services.runtime.access.control import AccessControl
from services.runtime.edge import EdgeInterceptor
from services.runtime.health import Health

FAST = RetryPolicy(initial_backoff_seconds=0.01, max_backoff_seconds=0.05)


class Replica(pb_grpc.RewardServiceServicer):
    """Calls `behave`, then answers `Score` with its name."""

    def __init__(self, name: str, behave: Callable[[int], Awaitable[None]] | None = None) -> None:
        self.name = name
        self.calls = 0
        self.behave = behave

    async def Score(self, request, context):
        self.calls += 1
        if self.behave is not None:
            await self.behave(self.calls)
        return pb.ScoreResponse(scores=[1.0] * len(request.items), model_version=self.name)

    async def GetRewardInfo(self, request, context):
        return pb.GetRewardInfoResponse(model_version=self.name)


@asynccontextmanager
async def serving(servicer, *, port: int = 0, add=pb_grpc.add_RewardServiceServicer_to_server, **options):
    registry = CollectorRegistry()
    edge = EdgeInterceptor(
        metrics.ServerMetrics(registry),
        AccessControl(KeysSection(), access_metrics=metrics.AccessMetrics(registry)),
    )
    server = aio.server(
        interceptors=[edge],
        options=[("grpc.so_reuseport", 0), *((f"grpc.{k}", v) for k, v in options.items())],
    )
    add(servicer, server)
    health = Health([])
    health.add_to(server)
    health.set_serving(True)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    servicer.health = health
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        health.close()
        await server.stop(None)


def dead_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Streamer(policy_service_pb2_grpc.PolicyServiceServicer):
    """Fails its first two streams at once, breaks the third after one message."""

    def __init__(self) -> None:
        self.calls = 0

    async def GenerateStream(
        self, request, context
    ) -> AsyncIterator[policy_service_pb2.GenerateStreamResponse]:
        self.calls += 1
        if self.calls <= 2:
            raise Unavailable("loading")
        for number in range(3):
            if self.calls == 4 and number == 1:
                raise Unavailable("draining")
            delta = tokens_pb2.Completion(token_ids=[number], logprobs=[-1.0])
            yield policy_service_pb2.GenerateStreamResponse(sample_index=0, delta=delta)

    async def Generate(self, request, context):
        raise NotImplementedError

    async def GetPolicyInfo(self, request, context):
        raise NotImplementedError
