"""The client of the reward service: scores of responses. Between users or workers and the channel."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Unpack, cast

from grpc import aio

from fairlead import codec
from fairlead.clients import ranking
from fairlead.clients.blocking import Blocking
from fairlead.clients.client import AsyncClient
from fairlead.clients.ordered import in_order
from fairlead.clients.policy import AsyncPolicyClient, PolicyClient
from fairlead.clients.progress import progress
from fairlead.clients.ranking import Ranked, Ranking
from fairlead.clients.requests import building, limits
from fairlead.clients.reward_options import (
    BestOfNOptions,
    InOrderOptions,
    RankOptions,
    RankPrompt,
    ScoreOptions,
    StreamOptions,
    draw,
    pairs,
    rank_options,
)
from fairlead.clients.score_stream import ScoreStream
from fairlead.errors import CorruptData, FairleadError, InvalidInput
from fairlead.types import (
    Priority,
    RewardInfo,
    ScoreItem,
    Scores,
    TextPair,
    TokenPair,
    WholeText,
)
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc

ScoreInput = ScoreItem | tuple[str, str]
"""An item, or (prompt, response) as texts."""


_STREAM_SECONDS = 86_400.0
_IN_FLIGHT = 128
_AHEAD = 4
"""Windows of requests that may be scored before the earliest one is: a few slow ones hold up nothing."""


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
            InvalidInput: for an item that cannot be scored, and then none is; or asked for calibrated scores
                of a model without a temperature.
            FairleadError: Unavailable, Overloaded, DeadlineExceeded … once trying again has not helped.
        """
        request = _request(items, options)
        response = await self._replicas.call(
            lambda stub: stub.Score,
            request,
            timeout_seconds=options.get("timeout_seconds"),
            metadata=limits(options.get("max_request_tokens")),
            fatal_to_replica=options.get("fatal_to_replica", False),
            exclusive=request.alone,
        )
        if len(response.scores) != len(items):
            raise CorruptData(f"reward: {len(response.scores)} scores for {len(items)} items")
        scores = codec.scores_from_pb(response)
        return ranking.calibrated(scores) if options.get("calibrated") else scores

    async def rank(
        self, prompt: RankPrompt, responses: Sequence[str], **options: Unpack[RankOptions]
    ) -> Ranking:
        """Responses to one prompt, best first; the service reads the prompt once.

        Args:
            prompt: text, or the turns of a conversation.
            responses: at least one.
            **options: see `RankOptions`.

        Raises:
            InvalidInput, FairleadError: as `score`.
        """
        calibrate = options.pop("calibrated", None)
        scores = await self.score(pairs(prompt, responses), **cast(ScoreOptions, options))
        return ranking.rank(responses, scores, calibrate=calibrate)

    async def best_of_n(
        self,
        prompt: RankPrompt,
        responses: Sequence[str] | None = None,
        **options: Unpack[BestOfNOptions[AsyncPolicyClient]],
    ) -> Ranked:
        """The best of the responses given, or of `n` answers of a policy.

        Args:
            prompt: text, or the turns of a conversation (of responses that are given).
            responses: at least one; or none, and `policy=` answers.
            **options: see `BestOfNOptions`.

        Raises:
            InvalidInput: neither responses nor a policy, or both.
            FairleadError: as `score`, or as the policy's `generate`.
        """
        drawn = draw(prompt, responses, options)
        if drawn is not None:
            completions = await drawn.policy.generate(drawn.prompt, drawn.sampling, num_samples=drawn.n)
            responses = [completion.text for completion in completions]
        assert responses is not None
        return (await self.rank(prompt, responses, **rank_options(options))).best

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
            requests,
            lambda items: _request(items, one),
            max_in_flight=options.get("max_in_flight", _IN_FLIGHT),
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

    async def score_in_order(
        self,
        requests: Iterable[Sequence[ScoreInput]] | AsyncIterable[Sequence[ScoreInput]],
        **options: Unpack[InOrderOptions],
    ) -> AsyncIterator[Scores]:
        """The scores of many requests, in their order, over one stream that survives broken connections.

        Args:
            requests: the items of each, as for `score`; read as scores are taken.
            **options: see `InOrderOptions`.

        Raises:
            InvalidInput: a request that cannot be scored, once those before it are.
            FairleadError: as `score_stream`.
        """
        divides, shown = options.pop("calibrated", False), options.pop("progress", "")
        total = options.pop("total", None)
        ahead = _AHEAD * options.get("max_in_flight", _IN_FLIGHT)
        found = in_order(requests, lambda inputs: self.score_stream(inputs, **options), ahead=ahead)  # type: ignore[misc]
        with progress(shown, total=total, shown=bool(shown)) as advance:
            async with aclosing(found):
                async for outcome in found:
                    if isinstance(outcome, FairleadError):
                        raise outcome
                    yield ranking.calibrated(outcome) if divides else outcome
                    advance(1)

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

    def rank(self, prompt: RankPrompt, responses: Sequence[str], **options: Unpack[RankOptions]) -> Ranking:
        """As `AsyncRewardClient.rank`."""
        return self._run(self._client.rank(prompt, responses, **options))

    def best_of_n(
        self,
        prompt: RankPrompt,
        responses: Sequence[str] | None = None,
        **options: Unpack[BestOfNOptions[PolicyClient]],
    ) -> Ranked:
        """As `AsyncRewardClient.best_of_n`, with a blocking policy client."""
        drawn = draw(prompt, responses, options)
        if drawn is not None:
            completions = drawn.policy.generate(drawn.prompt, drawn.sampling, num_samples=drawn.n)
            responses = [completion.text for completion in completions]
        assert responses is not None
        return self.rank(prompt, responses, **rank_options(options)).best

    def score_in_order(
        self, requests: Iterable[Sequence[ScoreInput]], **options: Unpack[InOrderOptions]
    ) -> Iterator[Scores]:
        """As `AsyncRewardClient.score_in_order`."""
        return self._iterate(self._client.score_in_order(requests, **options))

    def info(self, *, timeout_seconds: float | None = None) -> RewardInfo:
        """As `AsyncRewardClient.info`."""
        return self._run(self._client.info(timeout_seconds=timeout_seconds))


def _request(items: Sequence[ScoreInput], options: ScoreOptions) -> pb.ScoreRequest:
    with building("items"):
        return pb.ScoreRequest(
            items=[codec.score_item_to_pb(_item(item)) for item in items],
            request_id=options.get("request_id") or secrets.token_hex(8),
            priority=codec.priority_to_pb(options.get("priority", Priority.ONLINE)),
            alone=options.get("exclusive", False),
        )


def _item(item: ScoreInput) -> ScoreItem:
    if isinstance(item, (TextPair, TokenPair, WholeText)):
        return item
    if len(item) != 2 or not all(isinstance(text, str) for text in item):
        raise InvalidInput(
            "items", got=item, allowed="(prompt, response) as texts, TextPair, TokenPair or WholeText"
        )
    return TextPair(*item)
