"""The services behind the gateway: what they serve, whether they answer, calls within a deadline.

Between the dialects, which know HTTP, and `fairlead.clients`, which know the wire.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Generic, Literal, Self, TypedDict, TypeVar

from fairlead.clients import AsyncPolicyClient, AsyncRewardClient, options_of
from fairlead.config import RunConfig
from fairlead.config.serving import ModelServiceSection
from fairlead.errors import FairleadError, InternalError, InvalidInput, NotOffered, Unavailable
from fairlead.rpc.retry import RetryPolicy
from fairlead.types import (
    Generated,
    GeneratedPiece,
    Message,
    PolicyInfo,
    Priority,
    RewardInfo,
    SamplingParams,
    ScoreItem,
    Scores,
)
from services.gateway.call import HttpCall
from services.runtime.access import Caller, caller

logger = logging.getLogger(__name__)

ServiceKind = Literal["reward", "policy"]
PromptInput = str | tuple[Message, ...]
"""A prompt as text, or as turns."""
_Info_co = TypeVar("_Info_co", bound=RewardInfo | PolicyInfo, covariant=True)

_ASK_SECONDS = 5.0
_NO_REWARD = "no reward service is configured (reward.addresses)"
_NO_POLICY = "no policy service is configured (policy.addresses)"


class PolledService(Generic[_Info_co]):
    """What a service says of itself, asked again and again."""

    def __init__(
        self, kind: ServiceKind, ask: Callable[[], Awaitable[_Info_co]], *, every_seconds: float
    ) -> None:
        self.kind: ServiceKind = kind
        """Which service."""
        self._ask: Callable[[], Awaitable[_Info_co]] = ask
        self._every_seconds = every_seconds
        self._info: _Info_co | None = None
        self.available = False
        """Whether it did when it was last asked."""

    @property
    def info(self) -> _Info_co:
        """What it said last.

        Raises:
            Unavailable: it has not answered yet.
        """
        if self._info is None:
            raise Unavailable(f"the {self.kind} service has not answered yet")
        return self._info

    @property
    def name(self) -> str:
        """Of the model that it serves; empty before it has said it."""
        return self._info.model.model_id if self._info is not None else ""

    @property
    def version(self) -> str:
        """Of the weights in use.

        Raises:
            Unavailable: it has not answered yet.
        """
        info = self.info
        return info.model_version if isinstance(info, RewardInfo) else str(info.weight_version)

    async def watch(self) -> None:
        """Asks until it is cancelled."""
        while True:
            try:
                self._info = await self._ask()
            except FairleadError as error:
                if self.available or self._info is None:
                    logger.warning("%s does not answer: %s", self.kind, error)
                self.available = False
            else:
                if not self.available:
                    logger.info("%s answers: %s", self.kind, self.name)
                self.available = True
            await asyncio.sleep(self._every_seconds)


class Backend:
    """The reward and the policy service, as far as they are configured; an async context manager."""

    def __init__(self, config: RunConfig) -> None:
        """
        Raises:
            ConfigError: for an address that is none.
        """
        section = config.gateway
        retry = RetryPolicy(max_attempts=section.retry_attempts)
        options = options_of(config, timeout_seconds=section.timeout_seconds, retry=retry)
        self._reward: AsyncRewardClient | None = None
        self._policy: AsyncPolicyClient | None = None
        self.reward: PolledService[RewardInfo] | None = None
        """What the reward service serves; None if there is none."""
        self.policy: PolledService[PolicyInfo] | None = None
        """What the policy service serves; None if there is none."""
        if _is_there(config.reward):
            reward = AsyncRewardClient(config.reward.addresses, **options)
            self._reward = reward
            self.reward = PolledService(
                "reward",
                lambda: reward.info(timeout_seconds=_ASK_SECONDS),
                every_seconds=section.watch_seconds,
            )
        if _is_there(config.policy):
            policy = AsyncPolicyClient(config.policy.addresses, **options)
            self._policy = policy
            self.policy = PolledService(
                "policy",
                lambda: policy.info(timeout_seconds=_ASK_SECONDS),
                every_seconds=section.watch_seconds,
            )
        self.max_items = config.reward.batching.max_items
        """Items of one request at most; the reward service says no to more."""
        self.model_name = config.reward.model_name
        """The reward model's in the Open Inference Protocol."""
        self._watching: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._watching = [
            asyncio.create_task(each.watch()) for each in (self.reward, self.policy) if each is not None
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        for client in (self._reward, self._policy):
            if client is not None:
                await client.close()

    @property
    def available(self) -> bool:
        """Whether any of the services does."""
        return any(each.available for each in (self.reward, self.policy) if each is not None)

    @property
    def reward_model(self) -> str:
        """Name of the reward model; empty before the service has said it."""
        return self.reward.name if self.reward is not None else ""

    @property
    def reward_available(self) -> bool:
        """Whether the reward service does."""
        return self.reward is not None and self.reward.available

    @property
    def reward_info(self) -> RewardInfo:
        """What the reward service serves.

        Raises:
            NotOffered: there is none.
            Unavailable: it has not answered yet.
        """
        if self.reward is None:
            raise NotOffered(_NO_REWARD)
        return self.reward.info

    async def score(
        self, items: Sequence[ScoreItem], call: HttpCall, *, priority: Priority = Priority.ONLINE
    ) -> Scores:
        """One scalar for each item, in order.

        Raises:
            InvalidInput: for an item that cannot be scored, or none; none is then.
            NotOffered: there is no reward service.
            FairleadError: Overloaded, DeadlineExceeded …
        """
        if not items:
            raise InvalidInput("items", got=0, allowed="at least one to score")
        if self._reward is None:
            raise NotOffered(_NO_REWARD)
        who = caller()
        scores = await self._reward.score(
            items,
            priority=who.priority(priority),
            **_options(call, who),
        )
        if not all(map(math.isfinite, scores.scores)):
            raise InternalError("the reward service gave a score that is no finite number")
        # How many there are is known only now; what the key has not left it owes.
        await who.charge(tokens=sum(scores.num_tokens))
        return scores

    @property
    def policy_model(self) -> str:
        """Name of the policy; empty before the service has said it."""
        return self.policy.name if self.policy is not None else ""

    async def generate(
        self, prompt: PromptInput, sampling: SamplingParams, call: HttpCall, *, num_samples: int = 1
    ) -> Generated:
        """Answers of the policy.

        Raises:
            NotOffered: there is no policy service.
            PermissionDenied: the caller's key does not allow it.
            FairleadError: InvalidInput, Overloaded, DeadlineExceeded …
        """
        who = caller()
        found = await self._asked_policy().answer(
            prompt,
            sampling,
            num_samples=num_samples,
            **_options(call, who),
        )
        made = sum(len(completion.token_ids) for completion in found.completions)
        await who.charge(tokens=found.num_prompt_tokens + made)
        return found

    async def generate_stream(
        self, prompt: PromptInput, sampling: SamplingParams, call: HttpCall, *, num_samples: int = 1
    ) -> AsyncGenerator[GeneratedPiece, None]:
        """The same as it is made.

        Raises:
            FairleadError: as `generate`.
        """
        who = caller()
        pieces = self._asked_policy().answer_stream(
            prompt,
            sampling,
            num_samples=num_samples,
            **_options(call, who),
        )
        asked = made = 0
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    asked, made = piece.num_prompt_tokens, made + len(piece.delta.token_ids)
                    yield piece
        finally:
            # Also of an answer that nobody waited for.
            await who.charge(tokens=asked + made)

    def _asked_policy(self) -> AsyncPolicyClient:
        if self._policy is None:
            raise NotOffered(_NO_POLICY)
        key = caller().key
        if key is not None:
            key.require("generate")
        return self._policy


class _Options(TypedDict):
    """What goes with every call of a service."""

    request_id: str
    max_request_tokens: int | None
    timeout_seconds: float


def _options(call: HttpCall, who: Caller) -> _Options:
    # The tokens that a request of the caller's key may hold: the service counts them, before it begins.
    limit = who.key.max_request_tokens if who.key is not None else None
    return _Options(request_id=call.request_id, max_request_tokens=limit, timeout_seconds=call.remaining())


def _is_there(section: ModelServiceSection) -> bool:
    """Port 0 stands for any free one, so nobody has said where the service is."""
    return all(address.rpartition(":")[2] != "0" for address in section.addresses)
