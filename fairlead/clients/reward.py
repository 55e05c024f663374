"""The client of the reward service: scores of responses. Between users or workers and the channel."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TypedDict, Unpack

from grpc import aio

from fairlead import codec
from fairlead.clients.blocking import Blocking
from fairlead.clients.client import AsyncClient
from fairlead.clients.requests import building
from fairlead.errors import CorruptData, InvalidInput
from fairlead.types import Priority, RewardInfo, ScoreItem, Scores, TextPair, TokenPair
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc

ScoreInput = ScoreItem | tuple[str, str]
"""An item, or (prompt, response) as texts."""


class ScoreOptions(TypedDict, total=False):
    """Options of `score`."""

    priority: Priority
    """`BULK` lets online requests go first; online if not given."""
    request_id: str | None
    """Names the request in logs; a random one if not given."""
    timeout_seconds: float | None
    """Deadline of this call in place of the client's."""


class AsyncRewardClient(AsyncClient["pb_grpc.RewardServiceAsyncStub"]):
    """Scores responses; used within one event loop."""

    _service = "reward"

    def _make_stub(self, channel: aio.Channel) -> pb_grpc.RewardServiceAsyncStub:
        return pb_grpc.RewardServiceStub(channel)

    async def score(self, items: Sequence[ScoreInput], **options: Unpack[ScoreOptions]) -> Scores:
        """One scalar for each item, in order.

        Args:
            items: prompt and response each, as texts or as ids of the reward model's tokenizer.
            **options: see `ScoreOptions`.

        Raises:
            InvalidInput: for an item that cannot be scored; none is then.
            FairleadError: Unavailable, Overloaded, DeadlineExceeded … once trying again has not helped.
        """
        with building("items"):
            request = pb.ScoreRequest(
                items=[codec.score_item_to_pb(_item(item)) for item in items],
                request_id=options.get("request_id") or secrets.token_hex(8),
                priority=codec.priority_to_pb(options.get("priority", Priority.ONLINE)),
            )
        response = await self._replicas.call(
            lambda stub: stub.Score, request, timeout_seconds=options.get("timeout_seconds")
        )
        if len(response.scores) != len(items):
            raise CorruptData(f"reward: {len(response.scores)} scores for {len(items)} items")
        return codec.scores_from_pb(response)

    async def info(self, *, timeout_seconds: float | None = None) -> RewardInfo:
        """What is served.

        Raises:
            FairleadError: as `score`.
        """
        response = await self._replicas.call(
            lambda stub: stub.GetRewardInfo, pb.GetRewardInfoRequest(), timeout_seconds=timeout_seconds
        )
        return RewardInfo(
            codec.model_info_from_pb(response.model),
            response.model_version,
            response.calibration_temperature,
        )


class RewardClient(Blocking[AsyncRewardClient]):
    """`AsyncRewardClient` for scripts and notebooks: the same methods, blocking."""

    _kind = AsyncRewardClient

    def score(self, items: Sequence[ScoreInput], **options: Unpack[ScoreOptions]) -> Scores:
        """As `AsyncRewardClient.score`."""
        return self._run(self._client.score(items, **options))

    def info(self, *, timeout_seconds: float | None = None) -> RewardInfo:
        """As `AsyncRewardClient.info`."""
        return self._run(self._client.info(timeout_seconds=timeout_seconds))


def _item(item: ScoreInput) -> ScoreItem:
    if isinstance(item, (TextPair, TokenPair)):
        return item
    if len(item) != 2 or not all(isinstance(text, str) for text in item):
        raise InvalidInput("items", got=item, allowed="(prompt, response) as texts, TextPair or TokenPair")
    return TextPair(*item)
