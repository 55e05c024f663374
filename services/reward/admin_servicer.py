"""Wire in, wire out for fairlead.v1.RewardAdminService: which models a replica scores with."""

from __future__ import annotations

from typing import Any

from grpc import aio

from fairlead import codec
from fairlead.errors import InvalidInput, ModelLoadError, NotOffered, PermissionDenied
from fairlead.v1 import reward_admin_service_pb2 as pb
from fairlead.v1 import reward_admin_service_pb2_grpc as pb_grpc
from services.reward.scoring import Scoring
from services.reward.swapping import SwappingScoring
from services.runtime.limits import check_text

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["RewardAdminService"].full_name
"""Full name of the service, for health and reflection."""

_MAX_PATH_BYTES = 4_000
"""Limit on a path, below that of Linux."""

_Context = aio.ServicerContext[Any, Any]


class RewardAdminServicer(pb_grpc.RewardAdminServiceServicer):
    """The RPCs of fairlead.v1.RewardAdminService."""

    def __init__(self, scoring: Scoring, *, allowed: bool) -> None:
        """
        Args:
            scoring: computes the scores; only the models of a `SwappingScoring` can be changed.
            allowed: whether callers may change them.
        """
        self._given_scoring = scoring
        self._allowed = allowed

    def add_to(self, server: aio.Server) -> None:
        """Register the servicer."""
        pb_grpc.add_RewardAdminServiceServicer_to_server(self, server)

    @property
    def _scoring(self) -> SwappingScoring:
        if not isinstance(self._given_scoring, SwappingScoring):
            raise NotOffered(
                "only a model of this service can be replaced, not one of another server or of several terms"
            )
        if not self._allowed:
            raise PermissionDenied(
                "this service does not let callers replace models: "
                "configure [keys], or set reward.allow_reload to always"
            )
        return self._given_scoring

    async def ListRewardModels(
        self, request: pb.ListRewardModelsRequest, context: _Context
    ) -> pb.ListRewardModelsResponse:
        """Return the served models with their shares of the traffic."""
        return pb.ListRewardModelsResponse(models=codec.served_to_pb(self._scoring.served))

    async def LoadRewardModel(
        self, request: pb.LoadRewardModelRequest, context: _Context
    ) -> pb.LoadRewardModelResponse:
        """Load a model; return when it scores requests."""
        if not request.path:
            raise InvalidInput("path", got="nothing", allowed="a folder or hub id")
        check_text("path", request.path, max_bytes=_MAX_PATH_BYTES)
        try:
            served = await self._scoring.load(request.path, canary_share=request.canary_share)
        except ModelLoadError as error:
            allowed = f"a reward model that can be loaded: {error}"
            raise InvalidInput("path", got=request.path, allowed=allowed) from error
        return pb.LoadRewardModelResponse(models=codec.served_to_pb(served))

    async def SetCanaryShare(
        self, request: pb.SetCanaryShareRequest, context: _Context
    ) -> pb.SetCanaryShareResponse:
        """Change the canary's share of the traffic."""
        served = await self._scoring.set_share(request.canary_share)
        return pb.SetCanaryShareResponse(models=codec.served_to_pb(served))

    async def PromoteCanary(
        self, request: pb.PromoteCanaryRequest, context: _Context
    ) -> pb.PromoteCanaryResponse:
        """Make the canary the current model."""
        served = await self._scoring.promote(request.model_version)
        return pb.PromoteCanaryResponse(models=codec.served_to_pb(served))

    async def AbandonCanary(
        self, request: pb.AbandonCanaryRequest, context: _Context
    ) -> pb.AbandonCanaryResponse:
        """Remove the canary."""
        return pb.AbandonCanaryResponse(models=codec.served_to_pb(await self._scoring.abandon()))
