"""The client of the reward service: scores of responses. Between users or workers and the channel."""

from __future__ import annotations

from collections.abc import Sequence

from grpc import aio

from fairlead import codec
from fairlead.clients.blocking import Blocking
from fairlead.clients.client import AsyncClient
from fairlead.clients.requests import building
from fairlead.errors import CorruptData, InvalidInput
from fairlead.types import RewardInfo, ScoreItem, Scores, TextPair, TokenPair
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc

ScoreInput = ScoreItem | tuple[str, str]
"""An item, or (prompt, response) as texts."""


class AsyncRewardClient(AsyncClient["pb_grpc.RewardServiceAsyncStub"]):
    """Scores responses; used within one event loop."""

    _service = "reward"

    def _make_stub(self, channel: aio.Channel) -> pb_grpc.RewardServiceAsyncStub:
        return pb_grpc.RewardServiceStub(channel)

    async def score(self, items: Sequence[ScoreInput], *, timeout_seconds: float | None = None) -> Scores:
        """One scalar for each item, in order.

        Args:
            items: prompt and response each, as texts or as ids of the reward model's tokenizer.
            timeout_seconds: deadline of this call in place of the client's.

        Raises:
            InvalidInput: for an item that cannot be scored; none is then.
            FairleadError: Unavailable, Overloaded, DeadlineExceeded … once trying again has not helped.
        """
        with building("items"):
            request = pb.ScoreRequest(items=[codec.score_item_to_pb(_item(item)) for item in items])
        response = await self._replicas.call(
            lambda stub: stub.Score, request, timeout_seconds=timeout_seconds
        )
        if len(response.scores) != len(items):
            raise CorruptData(f"reward: {len(response.scores)} scores for {len(items)} items")
        return Scores(tuple(response.scores), response.model_version, tuple(response.num_tokens))

    async def info(self, *, timeout_seconds: float | None = None) -> RewardInfo:
        """What is served.

        Raises:
            FairleadError: as `score`.
        """
        response = await self._replicas.call(
            lambda stub: stub.GetRewardInfo, pb.GetRewardInfoRequest(), timeout_seconds=timeout_seconds
        )
        return RewardInfo(codec.model_info_from_pb(response.model), response.model_version)


class RewardClient(Blocking[AsyncRewardClient]):
    """`AsyncRewardClient` for scripts and notebooks: the same methods, blocking."""

    _kind = AsyncRewardClient

    def score(self, items: Sequence[ScoreInput], *, timeout_seconds: float | None = None) -> Scores:
        """As `AsyncRewardClient.score`."""
        return self._run(self._client.score(items, timeout_seconds=timeout_seconds))

    def info(self, *, timeout_seconds: float | None = None) -> RewardInfo:
        """As `AsyncRewardClient.info`."""
        return self._run(self._client.info(timeout_seconds=timeout_seconds))


def _item(item: ScoreInput) -> ScoreItem:
    if isinstance(item, (TextPair, TokenPair)):
        return item
    if len(item) != 2 or not all(isinstance(text, str) for text in item):
        raise InvalidInput("items", got=item, allowed="(prompt, response) as texts, TextPair or TokenPair")
    return TextPair(*item)
