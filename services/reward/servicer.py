"""Wire in, wire out for the reward service: messages → scoring → messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from grpc import aio

from fairlead import codec
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc
from services.reward.scoring import ScoreCall, Scoring
from services.runtime.access.control import caller
from services.runtime.edge import deadline, start_notice
from services.runtime.error_reply import rpc_error_reply
from services.runtime.large import in_thread_if_large
from services.runtime.limits import check_count
from services.runtime.rpc_call import current_call
from services.runtime.streams import Bounds, process_bounded

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["RewardService"].full_name
"""Full name of the service, for health and reflection."""

_STREAM = f"/{SERVICE_NAME}/ScoreStream"
_Context = aio.ServicerContext[Any, Any]


class RewardServicer(pb_grpc.RewardServiceServicer):
    """The RPCs of fairlead.v1.RewardService."""

    def __init__(self, scoring: Scoring, bounds: Bounds, *, max_items: int) -> None:
        """
        Args:
            scoring: computes the scores.
            bounds: limits of each stream.
            max_items: maximum number of items of a request.
        """
        self._scoring = scoring
        self._max_items = max_items
        self._bounds = bounds

    def add_to(self, server: aio.Server) -> None:
        """Register the servicer."""
        pb_grpc.add_RewardServiceServicer_to_server(self, server)

    async def Score(self, request: pb.ScoreRequest, context: _Context) -> pb.ScoreResponse:
        """Score a batch of responses."""
        return await self._score(request, deadline(context), on_start=start_notice(context))

    async def ScoreStream(
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: _Context
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        """Score many requests, a bounded number at a time; answer each as soon as it is scored."""
        until = deadline(context)

        async def answer(asked: pb.ScoreStreamRequest) -> pb.ScoreStreamResponse:
            try:
                response = await self._score(asked.request, until, waits=True)
            except Exception as error:  # noqa: BLE001 - the edge of one request; the stream continues
                what = rpc_error_reply(error, method=_STREAM, peer=current_call().peer)
                refusal = pb.ScoreStreamError(
                    code=what.code.value[0],
                    message=what.message,
                    retry_after_seconds=what.retry_after_seconds or 0.0,
                )
                return pb.ScoreStreamResponse(sequence=asked.sequence, error=refusal)
            return pb.ScoreStreamResponse(sequence=asked.sequence, response=response)

        answered = process_bounded(
            request_iterator, answer, size=pb.ScoreStreamRequest.ByteSize, bounds=self._bounds
        )
        async with aclosing(answered):
            async for response in answered:
                yield response

    async def _score(
        self,
        request: pb.ScoreRequest,
        until: float | None,
        *,
        waits: bool = False,
        on_start: Callable[[], None] | None = None,
    ) -> pb.ScoreResponse:
        call = ScoreCall(
            deadline=until,
            priority=codec.priority_from_pb(int(request.priority)),
            request_id=request.request_id or ("" if waits else caller().request_id),
            model_version=request.model_version,
            waits=waits,
            exclusive=caller().exclusive(request.alone),
            on_start=on_start,
        )
        # Before an item is converted; the scorer checks it again for its other callers.
        check_count("items", len(request.items), limit=self._max_items)
        items = await in_thread_if_large(lambda: codec.score_items_from_pb(request.items), request.ByteSize())
        return codec.scores_to_pb(await self._scoring.score(items, call))

    async def GetRewardInfo(
        self, request: pb.GetRewardInfoRequest, context: _Context
    ) -> pb.GetRewardInfoResponse:
        """Return the model that is served."""
        return codec.reward_info_to_pb(self._scoring.info)
