"""The three model services as a worker sees them: waits for them, checks that they fit, answers one task.

Between the worker and the clients. It knows no queue: an error leaves here as it came.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from fairlead import metrics, watchdog
from fairlead.clients import AsyncPolicyClient, AsyncReferenceClient, AsyncRewardClient
from fairlead.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    ReplicaLost,
    StaleWeights,
    Unavailable,
)
from fairlead.types import Completion, ModelInfo, PromptTask, Rollout, ScoreItem, Scores, TextPair, TokenPair
from services.rollout_worker.assemble import Refused, Unusable, assemble, check_completion, check_task
from services.rollout_worker.joined import JoinedCalls
from services.rollout_worker.solo import solo

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_U = TypeVar("_U")

_RETRY_SECONDS = 0.2
_SAY_SECONDS = 5.0
_INFO_SECONDS = 5.0


async def wait_for(what: str, attempt: Callable[[], Awaitable[_T]], *, kind: str) -> _T:
    """Tries until it succeeds; says every few seconds what is waited for and why.

    Args:
        what: for people.
        attempt: raises while it is not there.
        kind: one of the watchdog's.

    Raises:
        FairleadError: one that waiting does not mend.
    """
    with watchdog.PROCESS.waiting(kind, what, limited=False):
        return await _patiently(what, attempt)


async def _patiently(what: str, attempt: Callable[[], Awaitable[_T]]) -> _T:
    began, said = time.monotonic(), time.monotonic() - _SAY_SECONDS
    while True:
        try:
            return await attempt()
        except (Unavailable, DeadlineExceeded, Overloaded, StaleWeights) as error:
            now = time.monotonic()
            if now - said >= _SAY_SECONDS:
                said = now
                logger.info("waiting for %s, %.0f s so far: %s", what, now - began, error)
        await asyncio.sleep(_RETRY_SECONDS)


@dataclass(frozen=True, slots=True)
class Clients:
    """One client a service."""

    policy: AsyncPolicyClient
    """Generates."""
    reward: AsyncRewardClient
    """Scores."""
    reference: AsyncReferenceClient
    """Log-probs under the frozen model."""

    async def close(self) -> None:
        """Closes every connection."""
        await asyncio.gather(self.policy.close(), self.reward.close(), self.reference.close())


def compare(policy: ModelInfo, reward: ModelInfo, reference: ModelInfo) -> bool:
    """Whether the reward model must be given text because its tokenizer differs from the policy's.

    Raises:
        ConfigError: if policy and reference have different tokenizers; names both.
    """
    if policy.tokenizer_fingerprint != reference.tokenizer_fingerprint:
        raise ConfigError(
            "reference.path",
            got=f"{reference.model_id} with tokenizer {reference.tokenizer_fingerprint[:12]}",
            allowed=f"a model with the tokenizer {policy.tokenizer_fingerprint[:12]} of the policy "
            f"{policy.model_id}: log-probs of token ids need the same tokenizer",
        )
    if policy.tokenizer_fingerprint == reward.tokenizer_fingerprint:
        return False
    logger.warning(
        "the reward model %s has another tokenizer than the policy %s: answers are scored as text",
        reward.model_id,
        policy.model_id,
    )
    return True


async def both(first: Awaitable[_T], second: Awaitable[_U]) -> tuple[_T, _U]:
    """The results of two calls that run at the same time. If one fails the other is cancelled."""
    left, right = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        await asyncio.gather(left, right)
    except BaseException:
        left.cancel()
        right.cancel()
        await asyncio.gather(left, right, return_exceptions=True)
        raise
    return left.result(), right.result()


class ModelServices:
    """The three services, known to fit together."""

    def __init__(
        self,
        clients: Clients,
        *,
        run: str,
        policy: ModelInfo,
        scored_as_text: bool,
        counts: metrics.WorkerMetrics,
    ) -> None:
        """Made by `Peers.meet`."""
        self._clients = clients
        self._run = run
        self._policy = policy
        self._scored_as_text = scored_as_text
        self._counts = counts
        self._scores = JoinedCalls(self._score)
        self._logprobs: dict[float, JoinedCalls[TokenPair, tuple[float, ...]]] = {}

    @classmethod
    async def meet(cls, clients: Clients, *, run: str, counts: metrics.WorkerMetrics) -> ModelServices:
        """Waits until all three answer, and compares their tokenizers.

        Raises:
            ConfigError: if policy and reference have different tokenizers; names both.
        """
        policy, reward, reference = await asyncio.gather(
            wait_for(
                "the policy service",
                lambda: clients.policy.info(timeout_seconds=_INFO_SECONDS),
                kind="policy",
            ),
            wait_for(
                "the reward service",
                lambda: clients.reward.info(timeout_seconds=_INFO_SECONDS),
                kind="reward",
            ),
            wait_for(
                "the reference service",
                lambda: clients.reference.info(timeout_seconds=_INFO_SECONDS),
                kind="reference",
            ),
        )
        scored_as_text = compare(policy.model, reward.model, reference.model)
        return cls(clients, run=run, policy=policy.model, scored_as_text=scored_as_text, counts=counts)

    async def answer(self, task: PromptTask, *, suspect: bool = False) -> Rollout:
        """Generates, then scores and looks up log-probs at the same time.

        Args:
            task: the prompt.
            suspect: it failed before: its calls are alone, so that a replica that dies is its doing.

        Raises:
            Refused: if the task itself is at fault.
            Unusable: if an answer cannot be trained on.
            FairleadError: of a service, once its client has tried enough.
        """
        check_task(task, self._policy, scored_as_text=self._scored_as_text)
        began = time.monotonic()
        completion = await self._generate(task, suspect=suspect)
        check_completion(task, completion)
        generated = time.monotonic()
        tokens = TokenPair(task.prompt_token_ids, completion.token_ids)
        text = TextPair(task.prompt_text, completion.text, task.messages)
        item: ScoreItem = text if self._scored_as_text else tokens
        size = len(task.prompt_token_ids) + len(completion.token_ids)
        looked_up = self._reference_at(task.sampling.temperature)
        score = self._scores.ask(item, num_tokens=size, exclusive=suspect)
        look_up = looked_up.ask(tokens, num_tokens=size, exclusive=suspect)
        scores, logprobs = await both(
            _blamed("reward", self._timed("score", "reward", score, task=task.task_id)),
            _blamed("reference", self._timed("reference", "reference", look_up, task=task.task_id)),
        )
        return assemble(
            completion,
            scores,
            [logprobs],
            scored_as_text=self._scored_as_text,
            generate_seconds=generated - began,
            score_seconds=time.monotonic() - generated,
        )

    async def _generate(self, task: PromptTask, *, suspect: bool) -> Completion:
        """A completion; if a replica dies under it, it is tried again alone, and dying alone counts.

        Raises:
            Unusable: if a replica died while it answered nothing but this.
        """

        async def generate(*, exclusive: bool) -> Completion:
            call = self._clients.policy.generate(
                task.prompt_token_ids,
                task.sampling,
                num_samples=1,
                min_version=task.min_version,
                request_id=f"{self._run}-{task.task_id}",
                exclusive=exclusive,
                fatal_to_replica=True,
            )
            [completion] = await self._timed("generate", "policy", call, task=task.task_id)
            return completion

        if not suspect:
            try:
                return await generate(exclusive=False)
            except ReplicaLost as error:
                logger.warning("task %d is tried again alone: %s", task.task_id, error)
        return await _blamed("policy", solo(lambda: generate(exclusive=True)))

    async def _score(self, items: Sequence[ScoreItem], *, exclusive: bool) -> list[Scores]:
        found = await self._clients.reward.score(items, exclusive=exclusive, fatal_to_replica=True)
        tokens = found.num_tokens or (0,) * len(found.scores)
        return [
            replace(found, scores=(score,), num_tokens=(count,))
            for score, count in zip(found.scores, tokens, strict=True)
        ]

    def _reference_at(self, temperature: float) -> JoinedCalls[TokenPair, tuple[float, ...]]:
        """Sequences of one temperature share calls; a run has one, and evaluation maybe another."""
        if temperature not in self._logprobs:
            self._logprobs[temperature] = JoinedCalls(
                partial(self._clients.reference.logprobs, temperature=temperature, fatal_to_replica=True)
            )
        return self._logprobs[temperature]

    async def _timed(self, stage: str, service: str, call: Awaitable[_T], *, task: int) -> _T:
        """Times a call; a refusal becomes the task's fault, named after the service."""
        with (
            self._counts.stage_seconds.labels(stage=stage).time(),
            watchdog.PROCESS.waiting(service, f"the {service}'s answer", task=task),
        ):
            try:
                return await call
            except InvalidInput as error:
                raise Refused(f"refused_by_{service}", str(error)) from error


async def _blamed(service: str, call: Awaitable[_T]) -> _T:
    """The death of a replica that did nothing but this is the task's doing, named after the service.

    Raises:
        Unusable: if that happened.
    """
    try:
        return await call
    except ReplicaLost as error:
        raise Unusable(f"{service}_died", f"while it answered nothing else: {error}") from error
