"""The services behind the gateway: what they serve, whether they answer, calls within a deadline.

Between the dialects, which know HTTP, and `fairlead.clients`, which know the wire.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from fairlead.clients import AsyncPolicyClient, AsyncRewardClient
from fairlead.config import RunConfig
from fairlead.config.compute import ModelServiceSection
from fairlead.errors import FairleadError, InvalidInput, Unavailable
from fairlead.retry import RetryPolicy
from fairlead.types import PolicyInfo, Priority, RewardInfo, ScoreItem, Scores
from services.gateway.call import Call

logger = logging.getLogger(__name__)

_Info = TypeVar("_Info", RewardInfo, PolicyInfo)

_ASK_SECONDS = 5.0


class Watched(Generic[_Info]):
    """What a service says of itself, asked again and again."""

    def __init__(self, name: str, ask: Callable[[], Awaitable[_Info]], *, every_seconds: float) -> None:
        self._name = name
        self._ask: Callable[[], Awaitable[_Info]] = ask
        self._every_seconds = every_seconds
        self._info: _Info | None = None
        self.answers = False
        """Whether it did when it was last asked."""

    @property
    def info(self) -> _Info:
        """What it said last.

        Raises:
            Unavailable: it has not answered yet.
        """
        if self._info is None:
            raise Unavailable(f"the {self._name} service has not answered yet")
        return self._info

    @property
    def name(self) -> str:
        """Of the model that it serves; empty before it has said it."""
        return self._info.model.model_id if self._info is not None else ""

    async def watch(self) -> None:
        """Asks until it is cancelled."""
        while True:
            try:
                self._info = await self._ask()
            except FairleadError as error:
                if self.answers or self._info is None:
                    logger.warning("%s does not answer: %s", self._name, error)
                self.answers = False
            else:
                if not self.answers:
                    logger.info("%s answers: %s", self._name, self._info.model.model_id)
                self.answers = True
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
        self._reward: AsyncRewardClient | None = None
        self._policy: AsyncPolicyClient | None = None
        self.reward: Watched[RewardInfo] | None = None
        """What the reward service serves; None if there is none."""
        self.policy: Watched[PolicyInfo] | None = None
        """What the policy service serves; None if there is none."""
        if _is_there(config.reward):
            reward = AsyncRewardClient(
                config.reward.addresses, timeout_seconds=section.timeout_seconds, retry=retry
            )
            self._reward = reward
            self.reward = Watched(
                "reward",
                lambda: reward.info(timeout_seconds=_ASK_SECONDS),
                every_seconds=section.watch_seconds,
            )
        if _is_there(config.policy):
            policy = AsyncPolicyClient(
                config.policy.addresses, timeout_seconds=section.timeout_seconds, retry=retry
            )
            self._policy = policy
            self.policy = Watched(
                "policy",
                lambda: policy.info(timeout_seconds=_ASK_SECONDS),
                every_seconds=section.watch_seconds,
            )
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
    def answers(self) -> bool:
        """Whether any of the services does."""
        return any(each.answers for each in (self.reward, self.policy) if each is not None)

    @property
    def reward_model(self) -> str:
        """Name of the reward model; empty before the service has said it."""
        return self.reward.name if self.reward is not None else ""

    async def score(
        self, items: Sequence[ScoreItem], call: Call, *, priority: Priority = Priority.ONLINE
    ) -> Scores:
        """One scalar for each item, in order.

        Raises:
            InvalidInput: for an item that cannot be scored, or none; none is then.
            Unavailable: there is no reward service.
            FairleadError: Overloaded, DeadlineExceeded …
        """
        if not items:
            raise InvalidInput("items", got=0, allowed="at least one to score")
        if self._reward is None:
            raise Unavailable("no reward service is configured (reward.addresses)")
        return await self._reward.score(
            items, priority=priority, request_id=call.request_id, timeout_seconds=call.remaining()
        )


def _is_there(section: ModelServiceSection) -> bool:
    """Port 0 stands for any free one, so nobody has said where the service is."""
    return all(address.rpartition(":")[2] != "0" for address in section.addresses)
