"""The client of the reward service: scores of responses. Between users or workers and the channel."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import TypedDict, Unpack

from grpc import aio

from fairlead import codec
from fairlead.clients.blocking import Blocking
from fairlead.clients.client import AsyncClient
from fairlead.clients.requests import building
from fairlead.clients.score_stream import ScoreStream
from fairlead.errors import CorruptData, FairleadError, InvalidInput
from fairlead.types import Priority, RewardInfo, ScoreItem, Scores, TextPair, TokenPair, WholeText
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


class StreamOptions(TypedDict, total=False):
    """Options of `score_stream`."""

    priority: Priority
    """Bulk if not given: online requests go first."""
    max_in_flight: int
    """Requests that are read and whose outcome is not taken, at most; 128 if not given."""
    timeout_seconds: float
    """Deadline of the whole; a day if not given."""


_STREAM_SECONDS = 86_400.0


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
        request = _request(items, options)
        response = await self._replicas.call(
            lambda stub: stub.Score, request, timeout_seconds=options.get("timeout_seconds")
        )
        if len(response.scores) != len(items):
            raise CorruptData(f"reward: {len(response.scores)} scores for {len(items)} items")
        return codec.scores_from_pb(response)

    async def score_stream(
        self,
        requests: Iterable[Sequence[ScoreInput]] | AsyncIterable[Sequence[ScoreInput]],
        **options: Unpack[StreamOptions],
    ) -> AsyncIterator[tuple[int, Scores | FairleadError]]:
        """Scores many requests over one stream, which is opened anew if it breaks.

        Args:
            requests: the items of each, as for `score`; read as outcomes are taken.
            **options: see `StreamOptions`.

        Yields:
            Index of a request, from 0, and its scores or why there are none; in any order.

        Raises:
            FairleadError: when no stream can be had, once trying again has not helped.
            Exception: what reading `requests` raised, after the outcomes of those before.
        """
        one = ScoreOptions(priority=options.get("priority", Priority.BULK))
        stream = ScoreStream(
            requests, lambda items: _request(items, one), max_in_flight=options.get("max_in_flight", 128)
        )
        try:
            outcomes = self._replicas.exchange(
                lambda stub: stub.ScoreStream,
                stream.talk,
                timeout_seconds=options.get("timeout_seconds", _STREAM_SECONDS),
            )
            async with aclosing(outcomes):
                async for outcome in outcomes:
                    yield outcome
        finally:
            await stream.close()

    async def info(self, *, timeout_seconds: float | None = None) -> RewardInfo:
        """What is served.

        Raises:
            FairleadError: as `score`.
        """
        response = await self._replicas.call(
            lambda stub: stub.GetRewardInfo, pb.GetRewardInfoRequest(), timeout_seconds=timeout_seconds
        )
        return codec.reward_info_from_pb(response)


class RewardClient(Blocking[AsyncRewardClient]):
    """`AsyncRewardClient` for scripts and notebooks: the same methods, blocking."""

    _kind = AsyncRewardClient

    def score(self, items: Sequence[ScoreInput], **options: Unpack[ScoreOptions]) -> Scores:
        """As `AsyncRewardClient.score`."""
        return self._run(self._client.score(items, **options))

    def score_stream(
        self, requests: Iterable[Sequence[ScoreInput]], **options: Unpack[StreamOptions]
    ) -> Iterator[tuple[int, Scores | FairleadError]]:
        """As `AsyncRewardClient.score_stream`."""
        return self._iterate(self._client.score_stream(requests, **options))

    def info(self, *, timeout_seconds: float | None = None) -> RewardInfo:
        """As `AsyncRewardClient.info`."""
        return self._run(self._client.info(timeout_seconds=timeout_seconds))


def _request(items: Sequence[ScoreInput], options: ScoreOptions) -> pb.ScoreRequest:
    with building("items"):
        return pb.ScoreRequest(
            items=[codec.score_item_to_pb(_item(item)) for item in items],
            request_id=options.get("request_id") or secrets.token_hex(8),
            priority=codec.priority_to_pb(options.get("priority", Priority.ONLINE)),
        )


def _item(item: ScoreInput) -> ScoreItem:
    if isinstance(item, (TextPair, TokenPair, WholeText)):
        return item
    if len(item) != 2 or not all(isinstance(text, str) for text in item):
        raise InvalidInput(
            "items", got=item, allowed="(prompt, response) as texts, TextPair, TokenPair or WholeText"
        )
    return TextPair(*item)
