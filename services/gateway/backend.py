"""Clients for the reward and policy services: calls with a deadline, and polling of whether they are
available.

The dialects, which know HTTP, call this module; it calls `fairlead.clients`, which knows the wire format.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
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
from services.gateway.request_size import check_request_size
from services.runtime.access.control import Caller, caller
from services.runtime.http.call import HttpCall

logger = logging.getLogger(__name__)

ServiceKind = Literal["reward", "policy"]
PromptInput = str | tuple[Message, ...]
"""A prompt as plain text, or as the turns of a conversation."""
_Info_co = TypeVar("_Info_co", bound=RewardInfo | PolicyInfo, covariant=True)

POLL_SECONDS = 2.0
"""Time between two requests for what a service serves; /readyz depends on the replies."""
_INFO_TIMEOUT_SECONDS = 5.0
_NO_REWARD = "no reward service is configured: set reward.addresses"
_NO_POLICY = "no policy service is configured: set policy.addresses"


class PolledService(Generic[_Info_co]):
    """The description of one service, fetched at a fixed interval."""

    def __init__(
        self,
        kind: ServiceKind,
        fetch: Callable[[], Awaitable[_Info_co]],
        *,
        every_seconds: float,
        aliases: Sequence[str] = (),
    ) -> None:
        """
        Args:
            kind: which service it is.
            fetch: requests its description.
            every_seconds: the interval.
            aliases: further names of its model in requests.
        """
        self.kind: ServiceKind = kind
        """Which service it is."""
        self.aliases = tuple(aliases)
        """Further names of its model in requests."""
        self._fetch: Callable[[], Awaitable[_Info_co]] = fetch
        self._every_seconds = every_seconds
        self._info: _Info_co | None = None
        self.available = False
        """Whether the service answered the last request."""

    @property
    def info(self) -> _Info_co:
        """The latest description.

        Raises:
            Unavailable: the service has not answered yet.
        """
        if self._info is None:
            raise Unavailable(f"the {self.kind} service has not answered yet")
        return self._info

    @property
    def name(self) -> str:
        """The id of the model it serves; empty until the service has answered."""
        return self._info.model.model_id if self._info is not None else ""

    @property
    def version(self) -> str:
        """The version of the weights in use.

        Raises:
            Unavailable: the service has not answered yet.
        """
        info = self.info
        return info.model_version if isinstance(info, RewardInfo) else str(info.weight_version)

    async def poll(self) -> None:
        """Fetch the description again and again until cancelled."""
        while True:
            try:
                self._info = await self._fetch()
            except FairleadError as error:
                if self.available or self._info is None:
                    logger.warning("the %s service is not available: %s", self.kind, error)
                self.available = False
            else:
                if not self.available:
                    logger.info("the %s service is available and serves %s", self.kind, self.name)
                self.available = True
            await asyncio.sleep(self._every_seconds)


class Backend:
    """The reward and policy services that are configured. An async context manager."""

    def __init__(self, config: RunConfig, *, poll_seconds: float = POLL_SECONDS) -> None:
        """
        Args:
            config: the addresses of the services, and the gateway's own settings.
            poll_seconds: time between two requests for what a service serves.

        Raises:
            ConfigError: an address is invalid.
        """
        section = config.gateway
        retry = RetryPolicy(max_attempts=section.retry_attempts)
        options = options_of(config, timeout_seconds=section.timeout_seconds, retry=retry)
        self._reward: AsyncRewardClient | None = None
        self._policy: AsyncPolicyClient | None = None
        self.reward: PolledService[RewardInfo] | None = None
        """The reward service; None if it is not configured."""
        self.policy: PolledService[PolicyInfo] | None = None
        """The policy service; None if it is not configured."""
        if _is_configured(config.reward):
            self._reward = AsyncRewardClient(config.reward.addresses, **options)
            self.reward = PolledService(
                "reward",
                partial(self._reward.info, timeout_seconds=_INFO_TIMEOUT_SECONDS),
                every_seconds=poll_seconds,
                aliases=config.reward.aliases,
            )
        if _is_configured(config.policy):
            self._policy = AsyncPolicyClient(config.policy.addresses, **options)
            self.policy = PolledService(
                "policy",
                partial(self._policy.info, timeout_seconds=_INFO_TIMEOUT_SECONDS),
                every_seconds=poll_seconds,
                aliases=config.policy.aliases,
            )
        self.max_items = config.reward.batching.max_items
        """Maximum number of items in a request; the reward service refuses larger ones."""
        self.max_request_tokens = config.reward.batching.max_queue_tokens
        """Maximum number of tokens in a request: the reward service cannot queue more."""
        self.max_text_bytes = config.reward.max_text_bytes
        """Maximum size of a text that the reward service scores."""
        self.max_prompt_bytes = config.policy.max_text_bytes
        """Maximum size of a prompt that the policy service answers."""
        self._max_message_bytes = config.server_limits("reward").max_message_bytes
        self.model_name = config.reward.model_name
        """Name of the reward model in the Open Inference Protocol."""
        self.model_aliases = config.reward.aliases
        """Further names of the reward model in requests."""
        self._polling: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._polling = [
            asyncio.create_task(each.poll()) for each in (self.reward, self.policy) if each is not None
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._polling:
            task.cancel()
        await asyncio.gather(*self._polling, return_exceptions=True)
        for client in (self._reward, self._policy):
            if client is not None:
                await client.close()

    @property
    def available(self) -> bool:
        """Whether the reward service is available; of a gateway without one, the policy.

        While only the policy is not, such as before its first weights, scores are still served.
        """
        needed = self.reward or self.policy
        return needed is not None and needed.available

    def reward_model(self, version: str) -> str:
        """Return the id of the reward model of a version; of the current one if the version is not known."""
        if self.reward is None or not self.reward.name:
            return ""
        served = {info.model_version: info.model.model_id for info in self.reward.info.served}
        return served.get(version, self.reward.name)

    @property
    def reward_available(self) -> bool:
        """Whether the reward service is available."""
        return self.reward is not None and self.reward.available

    @property
    def reward_info(self) -> RewardInfo:
        """The description of the reward service.

        Raises:
            NotOffered: no reward service is configured.
            Unavailable: it has not answered yet.
        """
        if self.reward is None:
            raise NotOffered(_NO_REWARD)
        return self.reward.info

    @property
    def max_sequence_tokens(self) -> int:
        """Maximum number of tokens of a sequence; of a request until the reward service has answered."""
        known = self.reward is not None and self.reward.name
        limit = self.reward.info.model.max_sequence_tokens if self.reward is not None and known else 0
        return min(limit or self.max_request_tokens, self.max_request_tokens)

    async def score(
        self,
        items: Sequence[ScoreItem],
        call: HttpCall,
        *,
        priority: Priority = Priority.ONLINE,
        model_version: str = "",
    ) -> Scores:
        """Return one score for each item, in order.

        Args:
            items: at least one.
            call: the request, for its id and deadline.
            priority: as requested; the caller's API key may lower it.
            model_version: version that must score; empty for any.

        Raises:
            InvalidInput: there are no items, an item cannot be scored, or the request is too large; then no
                item is scored.
            NotOffered: no reward service is configured.
            NotFound: the version is not served.
            FairleadError: Overloaded, DeadlineExceeded and other errors of the call.
        """
        if not items:
            raise InvalidInput("items", got=0, allowed="at least one item to score")
        if self._reward is None:
            raise NotOffered(_NO_REWARD)
        check_request_size(items, limit=self._max_message_bytes)
        who = caller()
        scores = await self._reward.score(
            items,
            priority=who.priority(priority),
            model_version=model_version,
            **_options(call, who),
        )
        if not all(map(math.isfinite, scores.scores)):
            raise InternalError("the reward service returned a score that is not a finite number")
        # The number of tokens is known only now; if the key has fewer left, it goes into debt.
        await who.charge(tokens=sum(scores.num_tokens))
        return scores

    @property
    def policy_model(self) -> str:
        """Id of the policy model; empty until the service has answered."""
        return self.policy.name if self.policy is not None else ""

    async def generate(
        self, prompt: PromptInput, sampling: SamplingParams, call: HttpCall, *, num_samples: int = 1
    ) -> Generated:
        """Generate answers to a prompt.

        Raises:
            NotOffered: no policy service is configured.
            PermissionDenied: the caller's key does not allow generation.
            FairleadError: InvalidInput, Overloaded, DeadlineExceeded and other errors of the call.
        """
        who = caller()
        found = await self._permitted_policy().answer(
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
        """Generate answers to a prompt and yield the pieces as they are made.

        Raises:
            FairleadError: as `generate`.
        """
        who = caller()
        pieces = self._permitted_policy().answer_stream(
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
            # Also when the caller left before the end.
            await who.charge(tokens=asked + made)

    def _permitted_policy(self) -> AsyncPolicyClient:
        if self._policy is None:
            raise NotOffered(_NO_POLICY)
        key = caller().key
        if key is not None:
            key.require("generate")
        return self._policy


class _Options(TypedDict):
    """Arguments of every call to a service."""

    request_id: str
    max_request_tokens: int | None
    timeout_seconds: float


def _options(call: HttpCall, who: Caller) -> _Options:
    # The service counts the tokens of the request and enforces the key's limit before it starts to work.
    limit = who.key.max_request_tokens if who.key is not None else None
    return _Options(request_id=call.request_id, max_request_tokens=limit, timeout_seconds=call.remaining())


def _is_configured(section: ModelServiceSection) -> bool:
    """Whether addresses are set: the default has port 0, which means any free port."""
    return all(address.rpartition(":")[2] != "0" for address in section.addresses)
