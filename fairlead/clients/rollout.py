"""The rollouts of a prompt: generate completions, then score them and look up their reference log-probs.

Used by the rollout worker and by the trainer's evaluation, which pass calls that retry, measure or coalesce
as needed. It knows nothing about the queue, tasks or retries.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

from fairlead.clients.client import ClientOptions, options_of
from fairlead.clients.policy import AsyncPolicyClient
from fairlead.clients.reference import AsyncReferenceClient
from fairlead.clients.reward import AsyncRewardClient
from fairlead.types import Completion, Message, ScoreItem, Scores, TextPair, TokenPair

if TYPE_CHECKING:
    from types import TracebackType

    from fairlead.config import RunConfig
    from fairlead.config.serving import ModelServiceSection
    from fairlead.rpc.retry import RetryPolicy

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True, slots=True)
class RolloutClients:
    """The clients of the three model services of a run. An async context manager."""

    policy: AsyncPolicyClient
    """Generates completions."""
    reward: AsyncRewardClient
    """Scores them."""
    reference: AsyncReferenceClient | None
    """Returns their log-probs under the frozen reference model; None if the trainer computes them."""

    @classmethod
    def of(cls, config: RunConfig, *, retry: RetryPolicy | None = None) -> Self:
        """Return clients for the addresses and timeouts of a run; nothing connects before the first call.

        Raises:
            ConfigError: if an address is invalid or certificates cannot be used.
        """

        def options(section: ModelServiceSection) -> ClientOptions:
            return options_of(config, timeout_seconds=section.timeout_seconds, retry=retry)

        return cls(
            AsyncPolicyClient(config.policy.addresses, **options(config.policy)),
            AsyncRewardClient(config.reward.addresses, **options(config.reward)),
            None
            if config.reference.engine == "trainer"
            else AsyncReferenceClient(config.reference.addresses, **options(config.reference)),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        clients = (self.policy, self.reward, self.reference)
        await asyncio.gather(*(client.close() for client in clients if client is not None))


@dataclass(frozen=True, slots=True)
class RolloutPrompt:
    """A prompt in every form that the services read."""

    token_ids: tuple[int, ...]
    """Ids of the policy's tokenizer, read by the policy and the reference model."""
    text: str
    """The prompt as text, for a reward model with another tokenizer."""
    messages: tuple[Message, ...] = ()
    """The turns of a conversation, which replace `text`; empty for a plain prompt."""


@dataclass(frozen=True, slots=True)
class ScoreInputs:
    """A prompt and its completion, as the reward and reference services read them."""

    item: ScoreItem
    """For the reward model: texts if its tokenizer differs from the policy's, else token ids."""
    tokens: TokenPair
    """For the reference model."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens of prompt and completion together."""
        return len(self.tokens.prompt_token_ids) + len(self.tokens.response_token_ids)


@dataclass(frozen=True, slots=True)
class ScoredCompletions:
    """The results of the three services for one prompt."""

    completions: tuple[Completion, ...]
    """From the policy."""
    scores: Scores
    """From the reward model: a score for each completion."""
    reference_logprobs: tuple[tuple[float, ...], ...] | None
    """log π_ref of each token of each completion; None if they were not requested."""
    generate_seconds: float
    """Time for the completions."""
    score_seconds: float
    """Time for the scores and the log-probs, which run at the same time."""


async def generate_and_score(
    prompt: RolloutPrompt,
    *,
    generate: Callable[[], Awaitable[Sequence[Completion]]],
    score: Callable[[Sequence[ScoreInputs]], Awaitable[Scores]],
    reference: Callable[[Sequence[ScoreInputs]], Awaitable[Sequence[tuple[float, ...]]]] | None,
    scored_as_text: bool,
) -> ScoredCompletions:
    """Generate completions, then score them and look up their reference log-probs at the same time.

    Args:
        prompt: what `generate` completes.
        generate: returns the completions.
        score: returns the reward model's score of each.
        reference: returns log π_ref of each token of each completion; None to leave it out.
        scored_as_text: whether the reward model gets texts instead of token ids.

    Raises:
        Exception: the first error of a call; the call running at the same time is then cancelled.
    """
    began = time.monotonic()
    completions = tuple(await generate())
    generated = time.monotonic()
    inputs = [_score_inputs(prompt, completion, as_text=scored_as_text) for completion in completions]
    if reference is None:
        scores, logprobs = await score(inputs), None
    else:
        scores, found = await run_both(score(inputs), reference(inputs))
        logprobs = tuple(found)
    return ScoredCompletions(
        completions=completions,
        scores=scores,
        reference_logprobs=logprobs,
        generate_seconds=generated - began,
        score_seconds=time.monotonic() - generated,
    )


def _score_inputs(prompt: RolloutPrompt, completion: Completion, *, as_text: bool) -> ScoreInputs:
    tokens = TokenPair(prompt.token_ids, completion.token_ids)
    if as_text:
        return ScoreInputs(TextPair(prompt.text, completion.text, prompt.messages), tokens)
    # Every answer is scored at its end, also one that was cut off or that a stop string ended.
    return ScoreInputs(TokenPair(prompt.token_ids, completion.token_ids, append_end=True), tokens)


async def run_both(first: Awaitable[_T], second: Awaitable[_U]) -> tuple[_T, _U]:
    """Return the results of two calls that run at the same time. If one fails, cancel the other.

    Raises:
        Exception: the error of the call that failed first.
    """
    left = asyncio.ensure_future(first)
    right = asyncio.ensure_future(second)
    try:
        await asyncio.gather(left, right)
    except BaseException:
        left.cancel()
        right.cancel()
        await asyncio.gather(left, right, return_exceptions=True)
        raise
    return left.result(), right.result()
