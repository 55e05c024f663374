"""The client that administers a reward replica: it replaces the model while the replica serves requests."""

from __future__ import annotations

from grpc import aio

from fairlead import codec
from fairlead.clients.blocking import Blocking
from fairlead.clients.client import AsyncClient
from fairlead.types import ServedReward
from fairlead.v1 import reward_admin_service_pb2 as pb
from fairlead.v1 import reward_admin_service_pb2_grpc as pb_grpc


class AsyncRewardAdminClient(AsyncClient["pb_grpc.RewardAdminServiceAsyncStub"]):
    """Changes the models of one replica; every call returns them. The API key needs the scope `admin`."""

    _service = "reward"
    _timeout_seconds = 600.0

    def _make_stub(self, channel: aio.Channel) -> pb_grpc.RewardAdminServiceAsyncStub:
        return pb_grpc.RewardAdminServiceStub(channel)

    async def models(self) -> list[ServedReward]:
        """Return the current model, and after it the canary if there is one.

        Raises:
            FairleadError: PermissionDenied, Unavailable …, after retries.
        """
        response = await self._replicas.call(lambda stub: stub.ListRewardModels, pb.ListRewardModelsRequest())
        return codec.served_from_pb(response.models)

    async def load(self, path: str, *, canary_share: float = 0.0) -> list[ServedReward]:
        """Load a model that scores all requests, or a share of them; return when it is in use.

        Args:
            path: folder or hub id, as the replica sees it.
            canary_share: share of the requests, between 0 and 1; 0 replaces the current model.

        Raises:
            InvalidInput: if the model cannot be loaded or cannot score; the served models do not change.
            FairleadError: as `models`.
        """
        request = pb.LoadRewardModelRequest(path=path, canary_share=canary_share)
        response = await self._replicas.call(lambda stub: stub.LoadRewardModel, request)
        return codec.served_from_pb(response.models)

    async def set_share(self, canary_share: float) -> list[ServedReward]:
        """Change the canary's share of the requests.

        Raises:
            NotFound: if there is no canary.
            FairleadError: as `models`.
        """
        request = pb.SetCanaryShareRequest(canary_share=canary_share)
        response = await self._replicas.call(lambda stub: stub.SetCanaryShare, request)
        return codec.served_from_pb(response.models)

    async def promote(self, model_version: str = "") -> list[ServedReward]:
        """Make the canary the current model.

        Args:
            model_version: version of the canary, which may be the current model already; empty for any.

        Raises:
            NotFound: if there is no canary, or it has another version.
            FairleadError: as `models`.
        """
        request = pb.PromoteCanaryRequest(model_version=model_version)
        response = await self._replicas.call(lambda stub: stub.PromoteCanary, request)
        return codec.served_from_pb(response.models)

    async def abandon(self) -> list[ServedReward]:
        """Stop using the canary, if there is one. Raises the errors of `models`."""
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
