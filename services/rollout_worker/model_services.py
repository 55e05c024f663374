"""The three model services as a worker calls them: wait for them, check their tokenizers, answer one task.

Sits between the worker and the clients. Knows nothing about the queue, and raises every error as a client
raised it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from fairlead import watchdog
from fairlead.backoff import Backoff, retry
from fairlead.clients import AsyncReferenceClient
from fairlead.clients.rollout import RolloutClients, RolloutPrompt, ScoreInputs, generate_and_score
from fairlead.errors import ConfigError, InvalidInput, ReplicaLost
from fairlead.log import LogSummary
from fairlead.metrics import WorkerMetrics
from fairlead.types import (
    Completion,
    ModelInfo,
    PromptTask,
    ReferenceInfo,
    Rollout,
    ScoreItem,
    Scores,
    TokenPair,
)
from services.rollout_worker.assemble import (
    InvalidTask,
    UnusableResult,
    assemble,
    check_completion,
    check_task,
)
from services.rollout_worker.coalesced_calls import CoalescedCalls, until_available

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_RETRY = Backoff(first_seconds=0.2, longest_seconds=0.2, jitter=0.0)
_INFO_SECONDS = 5.0


async def wait_for(what: str, action: Callable[[], Awaitable[_T]], *, kind: str) -> _T:
    """Return the action's result, retried until it succeeds; logs every few seconds what it waits for.

    Args:
        what: name of what is waited for, for the log.
        action: raises a `Transient` error while it cannot be done.
        kind: one of `watchdog.KINDS`.

    Raises:
        FairleadError: any other error of the action.
    """
    with watchdog.PROCESS.waiting(kind, what, limited=False):
        return await retry(action, what=what, backoff=_RETRY)


def check_tokenizers(policy: ModelInfo, reward: ModelInfo, reference: ModelInfo | None) -> bool:
    """Return whether the reward model must get text because its tokenizer differs from the policy's.

    Raises:
        ConfigError: if policy and reference have different tokenizers; names both.
    """
    if reference is not None and policy.tokenizer_fingerprint != reference.tokenizer_fingerprint:
        raise ConfigError(
            "reference.path",
            got=f"{reference.model_id} with tokenizer {reference.tokenizer_fingerprint[:12]}",
            allowed=f"a model with the tokenizer {policy.tokenizer_fingerprint[:12]} of the policy "
            f"{policy.model_id}: log-probs of token ids need the same tokenizer",
        )
    if policy.tokenizer_fingerprint == reward.tokenizer_fingerprint:
        return False
    logger.warning(
        "the tokenizer of the reward model %s differs from that of the policy %s: completions are scored as "
        "text",
        reward.model_id,
        policy.model_id,
    )
    return True


async def _reference_info(client: AsyncReferenceClient | None) -> ReferenceInfo | None:
    if client is None:
        return None
    return await wait_for(
        "the reference service", lambda: client.info(timeout_seconds=_INFO_SECONDS), kind="reference"
    )


class ModelServices:
    """The services of a run, whose tokenizers have been checked."""

    def __init__(
        self,
        clients: RolloutClients,
        *,
        run: str,
        policy: ModelInfo,
        scored_as_text: bool,
        worker_metrics: WorkerMetrics,
    ) -> None:
        """Use `ModelServices.connect`."""
        self._clients = clients
        self._run = run
        self._policy = policy
        self._scored_as_text = scored_as_text
        self._metrics = worker_metrics
        self._scores = CoalescedCalls(self._score)
        self._exclusive_turn = asyncio.Lock()
        self._deaths = LogSummary(logger, level=logging.WARNING)
        self._logprobs: dict[float, CoalescedCalls[TokenPair, tuple[float, ...]]] = {}

    @classmethod
    async def connect(
        cls, clients: RolloutClients, *, run: str, worker_metrics: WorkerMetrics
    ) -> ModelServices:
        """Wait until all services answer, and check their tokenizers.

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
            _reference_info(clients.reference),
        )
        return cls(
            clients,
            run=run,
            policy=policy.model,
            scored_as_text=check_tokenizers(
                policy.model, reward.model, None if reference is None else reference.model
            ),
            worker_metrics=worker_metrics,
        )

    async def answer(self, task: PromptTask, exclusive: bool = False) -> Rollout:
        """Generate a completion, then score it and look up its reference log-probs at the same time.

        Args:
            task: the prompt.
            exclusive: make exclusive calls, so that a replica that dies was killed by this task; for a task
                that failed before.

        Raises:
            InvalidTask: if the task itself is at fault.
            UnusableResult: if a result cannot be trained on.
            FairleadError: of a service, after the client's retries.
        """
        check_task(task, self._policy, scored_as_text=self._scored_as_text)

        async def generate() -> Completion:
            completion = await self._generate(task, exclusive=exclusive)
            check_completion(task, completion)
            return completion

        async def score(inputs: ScoreInputs) -> Scores:
            call = self._scores.call(inputs.item, num_tokens=inputs.num_tokens, exclusive=exclusive)
            return await _replica_killed("reward", self._measured("score", "reward", call, task=task.task_id))

        client = self._clients.reference

        async def reference(inputs: ScoreInputs) -> tuple[float, ...]:
            assert client is not None
            logprobs = self._logprobs_at(client, task.sampling.temperature)
            call = logprobs.call(inputs.tokens, num_tokens=inputs.num_tokens, exclusive=exclusive)
            return await _replica_killed(
                "reference", self._measured("reference", "reference", call, task=task.task_id)
            )

        found = await generate_and_score(
            RolloutPrompt(task.prompt_token_ids, task.prompt_text, task.messages),
            generate=generate,
            score=score,
            reference=None if client is None else reference,
            scored_as_text=self._scored_as_text,
        )
        return assemble(found, scored_as_text=self._scored_as_text)

    async def _generate(self, task: PromptTask, *, exclusive: bool) -> Completion:
        """Return a completion; if a replica dies during the call, repeat it.

        Most replicas die of something else than a request, so all calls that were in progress are repeated
        together at first; those during which a second replica dies are repeated as exclusive calls, one
        after the other.

        Raises:
            UnusableResult: if a replica died during an exclusive call.
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
            [completion] = await self._measured("generate", "policy", call, task=task.task_id)
            return completion

        if not exclusive:
            try:
                return await generate(exclusive=False)
            except ReplicaLost as error:
                self._deaths.add("generating again after a policy replica died", error)
            try:
                return await until_available(lambda: generate(exclusive=False))
            except ReplicaLost as error:
                self._deaths.add(
                    "generating again in an exclusive call after two policy replicas died", error
                )
        async with self._exclusive_turn:
            return await _replica_killed("policy", until_available(lambda: generate(exclusive=True)))

    async def _score(self, items: Sequence[ScoreItem], *, exclusive: bool) -> list[Scores]:
        found = await self._clients.reward.score(items, exclusive=exclusive, fatal_to_replica=True)
        tokens = found.num_tokens or (0,) * len(found.scores)
        return [
            replace(found, scores=(score,), num_tokens=(count,))
            for score, count in zip(found.scores, tokens, strict=True)
        ]

    def _logprobs_at(
        self, client: AsyncReferenceClient, temperature: float
    ) -> CoalescedCalls[TokenPair, tuple[float, ...]]:
        """Return the calls of one temperature, which share RPCs; most runs have a single temperature."""
        if temperature not in self._logprobs:
            self._logprobs[temperature] = CoalescedCalls(
                partial(client.logprobs, temperature=temperature, fatal_to_replica=True)
            )
        return self._logprobs[temperature]

    async def _measured(self, stage: str, service: str, call: Awaitable[_T], *, task: int) -> _T:
        """Return the call's result and record its time.

        Raises:
            InvalidTask: if the service refused the input; the reason names the service.
        """
        with (
            self._metrics.stage_seconds.labels(stage=stage).time(),
            watchdog.PROCESS.waiting(service, f"the {service}'s answer", task=task),
        ):
            try:
                return await call
            except InvalidInput as error:
                raise InvalidTask(f"refused_by_{service}", str(error)) from error


async def _replica_killed(service: str, call: Awaitable[_T]) -> _T:
    """Return the call's result; a replica that died during an exclusive call counts as the task's failure.

    Raises:
        UnusableResult: if a replica died; the reason names the service.
    """
    try:
        return await call
    except ReplicaLost as error:
        raise UnusableResult(
            f"{service}_died", f"a replica died during an exclusive call: {error}"
        ) from error
