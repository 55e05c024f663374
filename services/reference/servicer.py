"""Wire in, wire out for the reference service: messages → scorer and batcher → messages."""

from __future__ import annotations

from typing import Any

from grpc import aio

from fairlead import codec
from fairlead.config.serving import ReferenceSection
from fairlead.types import TokenPair
from fairlead.v1 import reference_service_pb2 as pb
from fairlead.v1 import reference_service_pb2_grpc as pb_grpc
from services.batching.batcher import MicroBatcher
from services.reference.model import Lookup
from services.reference.scorer import ReferenceScorer
from services.runtime.access.control import caller
from services.runtime.edge import deadline, start_notice
from services.runtime.exclusive import ExclusiveGate
from services.runtime.large import in_thread_if_large
from services.runtime.wire_limits import WireLimits

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ReferenceService"].full_name
"""Full name of the service, for health and reflection."""

_Context = aio.ServicerContext[Any, Any]


def wire_limits(section: ReferenceSection) -> WireLimits:
    """Return what a request may contain."""
    return WireLimits(
        entries={"fairlead.v1.LogProbsRequest.sequences": section.batching.max_items},
        max_numbers=2 * section.batching.max_queue_tokens,
    )


class ReferenceServicer(pb_grpc.ReferenceServiceServicer):
    """The RPCs of fairlead.v1.ReferenceService."""

    def __init__(self, scorer: ReferenceScorer, batcher: MicroBatcher[Lookup, tuple[float, ...]]) -> None:
        self._scorer = scorer
        self._batcher = batcher
        self._gate = ExclusiveGate()

    def add_to(self, server: aio.Server) -> None:
        """Register the servicer."""
        pb_grpc.add_ReferenceServiceServicer_to_server(self, server)

    async def LogProbs(self, request: pb.LogProbsRequest, context: _Context) -> pb.LogProbsResponse:
        """Return log-probabilities of given responses."""
        return await self._gate.run(
            lambda: self._look_up(request, context),
            exclusive=caller().exclusive(request.alone),
            on_start=start_notice(context),
        )

    async def _look_up(self, request: pb.LogProbsRequest, context: _Context) -> pb.LogProbsResponse:
        self._scorer.check_count(len(request.sequences))
        lookups = await in_thread_if_large(
            lambda: self._scorer.check(_pairs(request), request.temperature), request.ByteSize()
        )
        num_tokens = [lookup.num_tokens for lookup in lookups]
        await caller().admit(tokens=sum(num_tokens))
        found = await self._batcher.submit(lookups, num_tokens, deadline=deadline(context))
        return pb.LogProbsResponse(sequences=[pb.TokenLogProbs(logprobs=row) for row in found])

    async def GetReferenceInfo(
        self, request: pb.GetReferenceInfoRequest, context: _Context
    ) -> pb.GetReferenceInfoResponse:
        """Return the model that is served."""
        return pb.GetReferenceInfoResponse(model=codec.model_info_to_pb(self._scorer.info.model))


def _pairs(request: pb.LogProbsRequest) -> list[TokenPair]:
    return [
        TokenPair(tuple(one.prompt_token_ids), tuple(one.response_token_ids)) for one in request.sequences
    ]
