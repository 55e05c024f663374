"""`fairlead feedback sample`: turn accepted prompts of the deployed policy into tasks, with answers of the
policy as it is now.

At least half of the prompts are drawn at random, and only tasks of those measure anything. The others are
those of which the reward model is least certain.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.feedback_options import Address, Project, client_of
from fairlead.cli.output import MaxNewTokens, Seed, Temperature, TimeoutSeconds, connection, fail, say

if TYPE_CHECKING:
    from fairlead.clients import AsyncPolicyClient, AsyncRewardClient
    from fairlead.feedback_client import FeedbackClient
    from fairlead.types import Completion, Message

_LEAST_RANDOM = 0.5
_CANDIDATES = 4
"""Prompts that are answered for each one that is chosen by uncertainty."""
_AT_ONCE = 16
_POOL = 1_000
"""Prompts of one request."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A prompt with what the policy said."""

    prompt: Any
    """As the API has it."""
    responses: tuple[dict[str, Any], ...]
    """Different answers, as the API takes them."""
    uncertainty: float = 0.0
    """See `uncertainty`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How answers are sampled."""

    k: int
    """Answers to a prompt."""
    temperature: float
    """Of sampling."""
    max_new_tokens: int
    """Of an answer."""
    seed: int
    """Of the draws and the answers."""


def sample(  # noqa: PLR0913, PLR0917 - a flag each
    address: Address,
    policy: Annotated[
        list[str],
        typer.Option("--policy", metavar="HOST:PORT", help="Address of the policy service; may be repeated."),
    ],
    k: Annotated[int, typer.Option("--k", min=2, max=16, help="Answers to each prompt.")] = 4,
    count: Annotated[int, typer.Option("--count", min=1, max=100_000, help="Tasks to add.")] = 100,
    random_share: Annotated[
        float,
        typer.Option(
            "--random-share",
            min=_LEAST_RANDOM,
            max=1.0,
            help="Share of the prompts that is drawn at random. Only these measure anything.",
        ),
    ] = 1.0,
    reward: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="HOST:PORT", help="Reward service that chooses the others."),
    ] = None,
    project: Project = None,
    round_: Annotated[int, typer.Option("--round", min=0, help="Round of an iteration.")] = 0,
    temperature: Temperature = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
    timeout_seconds: TimeoutSeconds = 300.0,
) -> None:
    """Draw prompts, sample answers and add tasks."""
    if random_share < 1 and not reward:
        fail(f"--random-share: got {random_share:g} without --reward, which chooses the other prompts")
    if random_share == 1 and reward:
        fail("--reward: has no effect with --random-share 1; allowed: a share from 0.5 to below 1")
    number = math.ceil(count * random_share)
    wanted = Wanted(k, temperature, max_new_tokens, seed)
    with client_of(address) as feedback:
        pool = _pool(feedback, number + _CANDIDATES * (count - number), seed)
        if not pool:
            fail("no accepted prompt without a task: a reviewer has to accept some first")
        drawn = pool[:number]
        chosen = asyncio.run(_answered(drawn, wanted, policy, None, timeout_seconds))
        added = _add(feedback, chosen, "random", project=project, round_=round_)
        uncertain = 0
        if rest := pool[number:]:
            found = asyncio.run(_answered(rest, wanted, policy, reward, timeout_seconds))
            found.sort(key=lambda one: one.uncertainty, reverse=True)
            # No more than their share, if some of the random ones could not become tasks.
            most = min(count - number, int(len(chosen) * (1 - random_share) / random_share + 1e-9))
            uncertain = _add(feedback, found[:most], "uncertain", project=project, round_=round_)
    dropped = len(drawn) - len(chosen)
    say(f"{added} tasks of prompts drawn at random, {uncertain} of uncertain ones")
    if dropped:
        say(f"{dropped} prompts left out, whose {k} answers are all the same", err=True, dim=True)


def uncertainty(scores: Sequence[float], calibration_temperature: float) -> float:
    """Return how near ½ the probabilities are that one answer is better than another: 4·p·(1 − p), in 0…1,
    the mean over pairs.

    Args:
        scores: of the answers to one prompt.
        calibration_temperature: divides scores so that σ of a difference is a probability; 0 if it
            is unknown.
    """
    scale = calibration_temperature or 1.0
    halves = (math.tanh((a - b) / scale / 2) for a, b in itertools.combinations(scores, 2))
    found = [1 - half**2 for half in halves]
    return sum(found) / len(found)


def _pool(feedback: FeedbackClient, count: int, seed: int) -> list[dict[str, Any]]:
    found = feedback.call("GET", "/collected", query={"count": min(count, _POOL), "seed": seed})
    if count > _POOL and found["all"] > _POOL:
        fail(f"--count: needs {count} prompts, allowed: {_POOL} in one call; call it again for more")
    prompts: list[dict[str, Any]] = found["prompts"]
    return prompts


async def _answered(
    pool: Sequence[dict[str, Any]],
    wanted: Wanted,
    policy: Sequence[str],
    reward: Sequence[str] | None,
    timeout_seconds: float,
) -> list[Sampled]:
    """Return prompts with at least two different answers, in the order of the pool."""
    from contextlib import AsyncExitStack

    from fairlead.clients import AsyncPolicyClient, AsyncRewardClient

    seeds = random.Random(wanted.seed)
    numbered = [(one["prompt"], seeds.getrandbits(62)) for one in pool]
    at_once = asyncio.Semaphore(_AT_ONCE)
    async with AsyncExitStack() as stack:
        answers = await stack.enter_async_context(AsyncPolicyClient(policy, **connection(timeout_seconds)))
        scorer = None
        if reward:
            scorer = await stack.enter_async_context(AsyncRewardClient(reward, **connection(timeout_seconds)))

        async def one(prompt: Any, seed: int) -> Sampled | None:  # noqa: ANN401 - as the API has it
            async with at_once:
                return await _sampled(prompt, seed, wanted, answers, scorer)

        found = await asyncio.gather(*(one(prompt, seed) for prompt, seed in numbered))
    return [sampled for sampled in found if sampled is not None]


async def _sampled(
    prompt: Any,  # noqa: ANN401 - as the API has it
    seed: int,
    wanted: Wanted,
    policy: AsyncPolicyClient,
    reward: AsyncRewardClient | None,
) -> Sampled | None:
    from fairlead.types import SamplingParams, TextPair

    asked = prompt if isinstance(prompt, str) else _messages(prompt)
    params = SamplingParams(temperature=wanted.temperature, max_new_tokens=wanted.max_new_tokens, seed=seed)
    completions = await policy.generate(asked, params, num_samples=wanted.k)
    texts = {one.text: one for one in completions}
    if len(texts) < 2:
        return None
    responses = tuple(_response(one, wanted, seed) for one in texts.values())
    if reward is None:
        return Sampled(prompt, responses)
    items = [
        TextPair(asked, text) if isinstance(asked, str) else TextPair("", text, messages=asked)
        for text in texts
    ]
    found = await reward.score(items)
    return Sampled(prompt, responses, uncertainty(found.scores, found.calibration_temperature))


def _messages(prompt: Sequence[dict[str, str]]) -> tuple[Message, ...]:
    from fairlead.types import Message

    return tuple(Message(turn["role"], turn["content"]) for turn in prompt)


def _response(completion: Completion, wanted: Wanted, seed: int) -> dict[str, Any]:
    return {
        "text": completion.text,
        "weight_versions": list(dict.fromkeys(str(span.version) for span in completion.version_spans)),
        "sampling": {"temperature": wanted.temperature, "seed": seed, "k": wanted.k},
    }


def _add(
    feedback: FeedbackClient, found: Sequence[Sampled], why: str, *, project: str | None, round_: int
) -> int:
    tasks = (
        {"prompt": one.prompt, "responses": list(one.responses), "why": why, "round": round_} for one in found
    )
    return sum(feedback.add_tasks(tasks, project=project))
