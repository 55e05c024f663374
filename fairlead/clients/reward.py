"""The client of the reward service, which scores and ranks responses.

Sits between its users and `fairlead.rpc`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypedDict, TypeVar, Unpack, cast

from grpc import aio

from fairlead import codec
from fairlead.clients import ranking
from fairlead.clients.blocking import Blocking
from fairlead.clients.bulk import in_order, progress_bar
from fairlead.clients.client import AsyncClient, building, token_limit
from fairlead.clients.policy import AsyncPolicyClient, PolicyClient
from fairlead.clients.ranking import Ranked, Ranking
from fairlead.clients.score_stream import ScoreStream
from fairlead.errors import CorruptData, FairleadError, InvalidInput, NotOffered
from fairlead.types import (
    Message,
    Priority,
    RewardInfo,
    SamplingParams,
    ScoreItem,
    Scores,
    TextPair,
    TokenPair,
    WholeText,
)
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc

_Policy = TypeVar("_Policy")

ScoreInput = ScoreItem | tuple[str, str]
"""An item, or (prompt, response) as texts."""
RankPrompt = str | Sequence[Message]
"""Text, or the messages of a conversation."""

_STREAM_SECONDS = 86_400.0
_IN_FLIGHT = 128
_AHEAD = 4
"""Windows of requests that may be scored before the earliest one, so that a slow request does not block."""


class ScoreOptions(TypedDict, total=False):
    """Options of `score`."""

    calibrated: bool
    """Divide scores by the model's calibration temperature: σ(difference) of two is then the probability that
    a labeler prefers the first. An error if the model has no such temperature. Default: raw scores."""
    priority: Priority
    """`BULK` requests are served after online ones. Default: `ONLINE`."""
    request_id: str | None
    """Id of the request in logs. Default: random."""
    model_version: str
    """Version that must score the items, of the current model or its canary. Default: the service chooses."""
    max_request_tokens: int | None
    """Largest number of tokens of the request. Default: the limit of the service."""
    timeout_seconds: float | None
    """Deadline of this call. Default: that of the client."""
    exclusive: bool
    """The replica computes nothing else meanwhile, and the call is not hedged; for items that may kill a
    replica. Implies `fatal_to_replica`."""
    fatal_to_replica: bool
    """Raise ReplicaLost if a replica dies during the call, instead of retrying on another."""


class RankOptions(TypedDict, total=False):
    """Options of `rank`."""

    calibrated: bool | None
    """As in `ScoreOptions`. Default: calibrated if the model has a calibration temperature."""
    priority: Priority
    """As in `ScoreOptions`."""
    request_id: str | None
    """As in `ScoreOptions`."""
    timeout_seconds: float | None
    """As in `ScoreOptions`."""


class BestOfNOptions(RankOptions, Generic[_Policy], total=False):
    """Options of `best_of_n`."""

    policy: _Policy
    """Client of the policy that generates the responses."""
    n: int
    """Number of responses to generate. Default: 8."""
    sampling: SamplingParams
    """How to sample the responses. Default: `SamplingParams()`."""


class StreamOptions(TypedDict, total=False):
    """Options of `score_stream`."""

    priority: Priority
    """Default: `BULK`, served after online requests."""
    max_in_flight: int
    """Largest number of requests that are read and whose outcome is not taken. Default: 128."""
    timeout_seconds: float
    """Deadline of all requests together. Default: a day."""


class InOrderOptions(StreamOptions, total=False):
    """Options of `score_in_order`."""

    calibrated: bool
    """As in `ScoreOptions`."""
    progress: str
    """Name of a progress bar on standard error, shown on a terminal. Default: no bar."""
    total: int | None
    """Number of requests, for the progress bar."""


class AsyncRewardClient(AsyncClient["pb_grpc.RewardServiceAsyncStub"]):
    """Scores responses. Used within one event loop."""

    _service = "reward"

    def _make_stub(self, channel: aio.Channel) -> pb_grpc.RewardServiceAsyncStub:
        return pb_grpc.RewardServiceStub(channel)

    async def score(self, items: Sequence[ScoreInput], **options: Unpack[ScoreOptions]) -> Scores:
        """Return one score for each item, in order.

        Args:
            items: prompt and response, as texts or as ids of the reward model's tokenizer.
            **options: see `ScoreOptions`.

        Raises:
            InvalidInput: if an item is invalid (no item is then scored), or if calibrated scores are
                requested and the model has no calibration temperature.
            NotFound: if `model_version` is not served.
            FairleadError: Unavailable, Overloaded, DeadlineExceeded …, after retries.
        """
        request = _request(items, options)
        response = await self._replicas.call(
            lambda stub: stub.Score,
            request,
            timeout_seconds=options.get("timeout_seconds"),
            metadata=token_limit(options.get("max_request_tokens")),
            fatal_to_replica=options.get("fatal_to_replica", False),
            exclusive=request.alone,
        )
        if len(response.scores) != len(items):
            raise CorruptData(f"reward: received {len(response.scores)} scores for {len(items)} items")
        wanted = options.get("model_version", "")
        if wanted not in ("", response.model_version):
            # A service of an older release does not know the field.
            raise NotOffered(
                f"reward: version {wanted[:80]!r} was asked for, {response.model_version} scored"
            )
        scores = codec.scores_from_pb(response)
        return ranking.calibrated(scores) if options.get("calibrated") else scores

    async def rank(
        self, prompt: RankPrompt, responses: Sequence[str], **options: Unpack[RankOptions]
    ) -> Ranking:
        """Return the responses to one prompt, best first. The service reads the prompt only once.

        Args:
            prompt: text, or the messages of a conversation.
            responses: at least one.
            **options: see `RankOptions`.

        Raises:
            InvalidInput, FairleadError: as `score`.
        """
        calibrate = options.pop("calibrated", None)
        scores = await self.score(_pairs(prompt, responses), **cast(ScoreOptions, options))
        return ranking.rank(responses, scores, calibrate=calibrate)

    async def best_of_n(
        self,
        prompt: RankPrompt,
        responses: Sequence[str] | None = None,
        **options: Unpack[BestOfNOptions[AsyncPolicyClient]],
    ) -> Ranked:
        """Return the best of the given responses, or of `n` responses of a policy.

        Args:
            prompt: text; with given responses also the messages of a conversation.
            responses: at least one; None to let `policy` generate them.
            **options: see `BestOfNOptions`.

        Raises:
            InvalidInput: for neither responses nor a policy, or both.
            FairleadError: as `score`, or as the policy's `generate`.
        """
        drawn = _draw(prompt, responses, options)
        if drawn is not None:
            completions = await drawn.policy.generate(drawn.prompt, drawn.sampling, num_samples=drawn.n)
            responses = [completion.text for completion in completions]
        assert responses is not None
        return (await self.rank(prompt, responses, **_rank_options(options))).best

    async def score_stream(
        self,
        requests: Iterable[Sequence[ScoreInput]] | AsyncIterable[Sequence[ScoreInput]],
        **options: Unpack[StreamOptions],
    ) -> AsyncIterator[tuple[int, Scores | FairleadError]]:
        """Score many requests over one stream, which is opened again if it breaks.

        Args:
            requests: the items of each request, as for `score`; read as outcomes are taken.
            **options: see `StreamOptions`.

        Yields:
            Index of a request, from 0, and its scores or its error; in any order.

        Raises:
            FairleadError: if no stream can be opened, after retries.
            Exception: raised by `requests`, after the outcomes of the requests before it.
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
                stream.communicate,
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
        """Yield the scores of many requests, in order, over one stream, which is opened again if it breaks.

        Args:
            requests: the items of each request, as for `score`; read as scores are taken.
            **options: see `InOrderOptions`.

        Raises:
            InvalidInput: for an invalid request, after the scores of the requests before it.
            FairleadError: as `score_stream`.
        """
        calibrate = options.pop("calibrated", False)
        bar = options.pop("progress", "")
        total = options.pop("total", None)
        ahead = _AHEAD * options.get("max_in_flight", _IN_FLIGHT)
        found = in_order(requests, lambda inputs: self.score_stream(inputs, **options), ahead=ahead)  # type: ignore[misc]
        with progress_bar(bar, total=total, shown=bool(bar)) as advance:
            async with aclosing(found):
                async for outcome in found:
                    if isinstance(outcome, FairleadError):
                        raise outcome
                    yield ranking.calibrated(outcome) if calibrate else outcome
                    advance(1)

    async def info(self, *, timeout_seconds: float | None = None) -> RewardInfo:
        """Return the model that is served.

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
        drawn = _draw(prompt, responses, options)
        if drawn is not None:
            completions = drawn.policy.generate(drawn.prompt, drawn.sampling, num_samples=drawn.n)
            responses = [completion.text for completion in completions]
        assert responses is not None
        return self.rank(prompt, responses, **_rank_options(options)).best

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
            model_version=options.get("model_version", ""),
        )


def _item(item: ScoreInput) -> ScoreItem:
    if isinstance(item, (TextPair, TokenPair, WholeText)):
        return item
    # A text of two letters is a sequence of two texts as well.
    is_pair = (
        isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(text, str) for text in item)
    )
    if not is_pair:
        raise InvalidInput(
            "items", got=item, allowed="(prompt, response) as texts, TextPair, TokenPair or WholeText"
        )
    return TextPair(*item)


@dataclass(frozen=True, slots=True)
class _Draw(Generic[_Policy]):
    """Responses to be generated by a policy."""

    policy: _Policy
    """Client of the policy."""
    prompt: str
    """Prompt to complete."""
    sampling: SamplingParams
    """How to sample."""
    n: int
    """Number of responses."""


def _draw(
    prompt: RankPrompt, responses: Sequence[str] | None, options: BestOfNOptions[_Policy]
) -> _Draw[_Policy] | None:
    """Return the responses to generate; None if responses are given.

    Raises:
        InvalidInput: for neither responses nor a policy, or both; for messages as the prompt of a policy.
    """
    policy = options.get("policy")
    if (responses is None) == (policy is None):
        got = "neither" if policy is None else "both"
        raise InvalidInput("responses", got=got, allowed="either responses or a policy")
    if policy is None:
        return None
    if not isinstance(prompt, str):
        raise InvalidInput(
            "prompt", got=f"{len(prompt)} messages", allowed="text, if a policy generates the responses"
        )
    n = options.get("n", 8)
    if n < 1:
        raise InvalidInput("n", got=n, allowed="at least 1")
    return _Draw(policy, prompt, options.get("sampling") or SamplingParams(), n)


def _rank_options(options: BestOfNOptions[_Policy]) -> RankOptions:
    """Return the options of `rank`."""
    kept = {name: value for name, value in options.items() if name in RankOptions.__annotations__}
    return cast(RankOptions, kept)


def _pairs(prompt: RankPrompt, responses: Sequence[str]) -> list[TextPair]:
    """Return the items to score.

    Raises:
        InvalidInput: for no responses, or a text instead of a list of texts.
    """
    if isinstance(responses, str) or not responses:
        raise InvalidInput("responses", got=responses or "none", allowed="a list of texts, at least one")
    if isinstance(prompt, str):
        return [TextPair(prompt, response) for response in responses]
    return [TextPair("", response, tuple(prompt)) for response in responses]
