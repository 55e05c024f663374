"""What is done for an RPC after it ended."""

from __future__ import annotations

import asyncio

import grpc
from grpc import aio
from prometheus_client import CollectorRegistry

from fairlead.errors import InvalidInput
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc
from services.runtime.error_reply import ErrorReply
from services.runtime.rpc_call import current_call
from tests.unit.fairlead.transports.weights.weights_wire import listening
from tests.waiting import until


class _Outliving(pb_grpc.RewardServiceServicer):
    """Starts a part of each RPC that fails on request, even after the RPC."""

    def __init__(self) -> None:
        self.may_fail = asyncio.Event()
        self.part: asyncio.Task[object] | None = None
        self.is_cancelled = False

    async def Score(self, request: pb.ScoreRequest, context: object) -> pb.ScoreResponse:
        async def fail() -> None:
            await self.may_fail.wait()
            raise InvalidInput("items", got="0", allowed="1")

        self.part = asyncio.create_task(
            current_call().answer_part(
                fail,
                method="/fairlead.v1.RewardService/Score",
                request=request,
                request_id="",
                is_counted=True,
            )
        )
        try:
            await asyncio.Event().wait()
        finally:
            self.is_cancelled = True
        raise AssertionError

    def add_to(self, server: aio.Server) -> None:
        pb_grpc.add_RewardServiceServicer_to_server(self, server)


async def test_error_after_the_caller_cancelled_does_not_end_the_process() -> None:
    # gRPC's context has no call any more then, and asking it for the peer was a segmentation fault.
    servicer = _Outliving()
    async with (
        listening(servicer, CollectorRegistry()) as node,
        aio.insecure_channel(node.address) as channel,
    ):
        call = pb_grpc.RewardServiceStub(channel).Score(pb.ScoreRequest())
        await until(lambda: servicer.part is not None)
        call.cancel()
        await until(lambda: servicer.is_cancelled)
        # Until gRPC has released the call.
        await asyncio.sleep(0.1)
        servicer.may_fail.set()
        assert servicer.part is not None
        reply = await servicer.part
    assert isinstance(reply, ErrorReply)
    assert reply.code is grpc.StatusCode.INVALID_ARGUMENT
