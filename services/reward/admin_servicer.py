"""Wire in, wire out for fairlead.v1.RewardAdminService: which models a replica scores with."""

from __future__ import annotations

from typing import Any

from grpc import aio

from fairlead import codec
from fairlead.errors import InvalidInput, ModelLoadError, NotOffered, PermissionDenied
from fairlead.v1 import reward_admin_service_pb2 as pb
from fairlead.v1 import reward_admin_service_pb2_grpc as pb_grpc
from services.reward.swapping import SwappingScoring

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["RewardAdminService"].full_name
"""For health and reflection."""

_Context = aio.ServicerContext[Any, Any]


class RewardAdminServicer(pb_grpc.RewardAdminServiceServicer):
    """The RPCs of fairlead.v1.RewardAdminService."""

    def __init__(self, scoring: object, *, allowed: bool) -> None:
        """
        Args:
            scoring: what scores; only a `SwappingScoring` can be changed.
            allowed: whether callers may change it at all.
        """
        self._found = scoring
        self._allowed = allowed

    def add_to(self, server: aio.Server) -> None:
        """Registers the servicer."""
        pb_grpc.add_RewardAdminServiceServicer_to_server(self, server)

    @property
    def _scoring(self) -> SwappingScoring:
        if not isinstance(self._found, SwappingScoring):
            raise NotOffered("the model is another server's: replace it there")
        if not self._allowed:
            raise PermissionDenied(
                "models are not replaced here: configure [keys], or set reward.allow_reload to always"
            )
        return self._found

    async def ListRewardModels(
        self, request: pb.ListRewardModelsRequest, context: _Context
    ) -> pb.ListRewardModelsResponse:
        """What is served."""
        return pb.ListRewardModelsResponse(models=codec.served_to_pb(self._scoring.served))

    async def LoadRewardModel(
        self, request: pb.LoadRewardModelRequest, context: _Context
    ) -> pb.LoadRewardModelResponse:
        """Loads a model; returns when it scores."""
        if not request.path:
            raise InvalidInput("path", got="nothing", allowed="a folder or hub id")
        try:
            served = await self._scoring.load(request.path, canary_share=request.canary_share)
        except ModelLoadError as error:
            allowed = f"a reward model that can be loaded: {error}"
            raise InvalidInput("path", got=request.path, allowed=allowed) from error
        return pb.LoadRewardModelResponse(models=codec.served_to_pb(served))

    async def SetCanaryShare(
        self, request: pb.SetCanaryShareRequest, context: _Context
    ) -> pb.SetCanaryShareResponse:
        """Changes the canary's share."""
        served = await self._scoring.set_share(request.canary_share)
        return pb.SetCanaryShareResponse(models=codec.served_to_pb(served))

    async def PromoteCanary(
        self, request: pb.PromoteCanaryRequest, context: _Context
    ) -> pb.PromoteCanaryResponse:
        """The canary takes over."""
        served = await self._scoring.promote(request.model_version)
        return pb.PromoteCanaryResponse(models=codec.served_to_pb(served))

    async def AbandonCanary(
        self, request: pb.AbandonCanaryRequest, context: _Context
    ) -> pb.AbandonCanaryResponse:
        """The canary is given up."""
        return pb.AbandonCanaryResponse(models=codec.served_to_pb(await self._scoring.abandon()))
