"""The client of the reward service's administration: replaces the model of one replica while it serves."""

from __future__ import annotations

from grpc import aio

from fairlead import codec
from fairlead.clients.blocking import Blocking
from fairlead.clients.client import AsyncClient
from fairlead.types import ServedReward
from fairlead.v1 import reward_admin_service_pb2 as pb
from fairlead.v1 import reward_admin_service_pb2_grpc as pb_grpc


class AsyncRewardAdminClient(AsyncClient["pb_grpc.RewardAdminServiceAsyncStub"]):
    """Changes what one replica serves; every call returns that. Its key needs the scope `admin`."""

    _service = "reward"
    _timeout_seconds = 600.0

    def _make_stub(self, channel: aio.Channel) -> pb_grpc.RewardAdminServiceAsyncStub:
        return pb_grpc.RewardAdminServiceStub(channel)

    async def models(self) -> list[ServedReward]:
        """The current model, and the canary behind it if there is one.

        Raises:
            FairleadError: PermissionDenied, Unavailable … once trying again has not helped.
        """
        response = await self._replicas.call(lambda stub: stub.ListRewardModels, pb.ListRewardModelsRequest())
        return codec.served_from_pb(response.models)

    async def load(self, path: str, *, canary_share: float = 0.0) -> list[ServedReward]:
        """Loads a model in the replica, and lets it score everything or a share; returns when it does.

        Args:
            path: folder or hub id, as the replica sees it.
            canary_share: share of the traffic, between 0 and 1; 0 replaces the current model.

        Raises:
            InvalidInput: it cannot be loaded or cannot score; what is served stays as it was.
            FairleadError: as `models`.
        """
        request = pb.LoadRewardModelRequest(path=path, canary_share=canary_share)
        response = await self._replicas.call(lambda stub: stub.LoadRewardModel, request)
        return codec.served_from_pb(response.models)

    async def set_share(self, canary_share: float) -> list[ServedReward]:
        """Changes the canary's share.

        Raises:
            NotFound: there is no canary.
            FairleadError: as `models`.
        """
        request = pb.SetCanaryShareRequest(canary_share=canary_share)
        response = await self._replicas.call(lambda stub: stub.SetCanaryShare, request)
        return codec.served_from_pb(response.models)

    async def promote(self, model_version: str = "") -> list[ServedReward]:
        """Makes the canary the current model.

        Args:
            model_version: of the canary that is meant; it may be the current model already. Empty: any.

        Raises:
            NotFound: there is no canary, or another one.
            FairleadError: as `models`.
        """
        request = pb.PromoteCanaryRequest(model_version=model_version)
        response = await self._replicas.call(lambda stub: stub.PromoteCanary, request)
        return codec.served_from_pb(response.models)

    async def abandon(self) -> list[ServedReward]:
        """Gives the canary up, if there is one; raises as `models`."""
        response = await self._replicas.call(lambda stub: stub.AbandonCanary, pb.AbandonCanaryRequest())
        return codec.served_from_pb(response.models)


class RewardAdminClient(Blocking[AsyncRewardAdminClient]):
    """`AsyncRewardAdminClient` for scripts and notebooks: the same methods, blocking."""

    _kind = AsyncRewardAdminClient

    def models(self) -> list[ServedReward]:
        """As `AsyncRewardAdminClient.models`."""
        return self._run(self._client.models())

    def load(self, path: str, *, canary_share: float = 0.0) -> list[ServedReward]:
        """As `AsyncRewardAdminClient.load`."""
        return self._run(self._client.load(path, canary_share=canary_share))

    def set_share(self, canary_share: float) -> list[ServedReward]:
        """As `AsyncRewardAdminClient.set_share`."""
        return self._run(self._client.set_share(canary_share))

    def promote(self, model_version: str = "") -> list[ServedReward]:
        """As `AsyncRewardAdminClient.promote`."""
        return self._run(self._client.promote(model_version))

    def abandon(self) -> list[ServedReward]:
        """As `AsyncRewardAdminClient.abandon`."""
        return self._run(self._client.abandon())
