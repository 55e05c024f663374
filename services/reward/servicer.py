"""Wire in, wire out for the reward service: messages → scoring → messages."""

from __future__ import annotations

from typing import Any

from grpc import aio

from fairlead import codec
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc
from services.reward.scoring import Scoring
from services.runtime.interceptors import deadline

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["RewardService"].full_name
"""For health and reflection."""

_Context = aio.ServicerContext[Any, Any]


class RewardServicer(pb_grpc.RewardServiceServicer):
    """The RPCs of fairlead.v1.RewardService."""

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring

    def add_to(self, server: aio.Server) -> None:
        """Registers the servicer."""
        pb_grpc.add_RewardServiceServicer_to_server(self, server)

    async def Score(self, request: pb.ScoreRequest, context: _Context) -> pb.ScoreResponse:
        """Scores a batch of responses."""
        scores = await self._scoring.score(
            codec.score_items_from_pb(request.items),
            deadline=deadline(context),
            priority=codec.priority_from_pb(int(request.priority)),
        )
        return codec.scores_to_pb(scores)

    async def GetRewardInfo(
        self, request: pb.GetRewardInfoRequest, context: _Context
    ) -> pb.GetRewardInfoResponse:
        """What is served."""
        info = self._scoring.info
        return pb.GetRewardInfoResponse(
            model=codec.model_info_to_pb(info.model),
            model_version=info.model_version,
            calibration_temperature=info.calibration_temperature,
        )
