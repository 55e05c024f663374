"""Wire in, wire out for the reward service: messages → scorer and batcher → messages."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc import aio

from fairlead import codec
from fairlead.types import TextPair
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc
from services.reward.scorer import RewardScorer
from services.runtime.batching import MicroBatcher
from services.runtime.interceptors import deadline

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["RewardService"].full_name
"""For health and reflection."""

_Context = aio.ServicerContext[Any, Any]


class RewardServicer(pb_grpc.RewardServiceServicer):
    """The RPCs of fairlead.v1.RewardService."""

    def __init__(self, scorer: RewardScorer, batcher: MicroBatcher[tuple[int, ...], float]) -> None:
        self._scorer = scorer
        self._batcher = batcher

    def add_to(self, server: aio.Server) -> None:
        """Registers the servicer."""
        pb_grpc.add_RewardServiceServicer_to_server(self, server)

    async def Score(self, request: pb.ScoreRequest, context: _Context) -> pb.ScoreResponse:
        """Scores a batch of responses."""
        items = codec.score_items_from_pb(request.items)
        if any(isinstance(item, TextPair) for item in items):
            sequences = await asyncio.to_thread(self._scorer.encode, items)
        else:
            # Checking ids takes less than a change of threads.
            sequences = self._scorer.encode(items)
        num_tokens = [len(sequence) for sequence in sequences]
        scores = await self._batcher.submit(sequences, num_tokens, deadline=deadline(context))
        version = self._scorer.info.model_version
        return pb.ScoreResponse(scores=scores, model_version=version, num_tokens=num_tokens)

    async def GetRewardInfo(
        self, request: pb.GetRewardInfoRequest, context: _Context
    ) -> pb.GetRewardInfoResponse:
        """What is served."""
        info = self._scorer.info
        return pb.GetRewardInfoResponse(
            model=codec.model_info_to_pb(info.model), model_version=info.model_version
        )
