"""The three model services as a worker calls them: wait for them, check their tokenizers, answer one task.

Sits between the worker and the clients. Knows nothing about the queue, and raises every error as a client
raised it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from fairlead import tracing, watchdog
from fairlead.backoff import Backoff, retry
from fairlead.clients import AsyncReferenceClient
from fairlead.clients.rollout import RolloutClients, RolloutPrompt, ScoreInputs, generate_and_score
from fairlead.errors import ConfigError, CorruptData, InvalidInput, ReplicaLost
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
    check_completions,
    check_task,
)
from services.rollout_worker.coalesced_calls import CoalescedCalls, until_available

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_Items = tuple[ScoreItem, ...]
_Pairs = tuple[TokenPair, ...]
_Logprobs = tuple[tuple[float, ...], ...]
"""What the services read and return for the answers of one task."""

_HELD_PART = 0.25
_LONGEST_HOLD_SECONDS = 0.25
"""While other tasks are still being answered, an answer is held for this part of the time that its own
tokens took, at most this long, so that several are scored in one call: a call costs a service about 0.7 ms of
CPU time, as much as scoring several small answers."""
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
    if not reward.tokenizer_fingerprint:
        return True  # a function, or a server with a tokenizer of its own
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
        self._num_generating = 0
        self._scores = CoalescedCalls(self._score, name="reward call", expects_more=self._expects_answers)
        self._exclusive_turn = asyncio.Lock()
        self._deaths = LogSummary(logger, level=logging.WARNING)
        self._logprobs: dict[float, CoalescedCalls[_Pairs, _Logprobs]] = {}

    @classmethod
    async def connect(
        cls, clients: RolloutClients, *, run: str, worker_metrics: WorkerMetrics, num_samples: int = 1
    ) -> ModelServices:
        """Wait until all services answer, and check their tokenizers and limits.

        Args:
            clients: of the services.
            run: name of the run, for the ids of requests.
            worker_metrics: of this process.
            num_samples: answers per task, `ppo.num_samples`.

        Raises:
            ConfigError: if policy and reference have different tokenizers; names both. If the policy service
                does not generate that many answers in one request.
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
        if num_samples > policy.max_samples:
            raise ConfigError(
                "ppo.num_samples",
                got=num_samples,
                allowed=f"at most {policy.max_samples}, the limit of the policy service that answers at "
                "policy.addresses; raise policy.max_samples there",
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

    async def answer(self, task: PromptTask, exclusive: bool = False) -> tuple[Rollout, ...]:
        """Generate the completions of a task, then score them and look up their reference log-probs.

        The completions of a task travel together, so that a service reads their prompt once; the task fails
        if one of them does.

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
        began = time.monotonic()

        async def generate() -> Sequence[Completion]:
            self._num_generating += 1
            try:
                completions = await self._generate(task, exclusive=exclusive)
            finally:
                self._num_generating -= 1
            check_completions(task, completions)
            return completions

        def hold_seconds() -> float:
            return min(_LONGEST_HOLD_SECONDS, _HELD_PART * (time.monotonic() - began))

        async def score(inputs: Sequence[ScoreInputs]) -> Scores:
            call = self._scores.call(
                tuple(each.item for each in inputs),
                num_sequences=len(inputs),
                num_tokens=sum(each.num_tokens for each in inputs),
                exclusive=exclusive,
                hold_seconds=hold_seconds(),
            )
            return await _replica_killed("reward", self._measured("score", "reward", call, task=task.task_id))

        client = self._clients.reference

        async def reference(inputs: Sequence[ScoreInputs]) -> _Logprobs:
            assert client is not None
            call = self._logprobs_at(client, task.sampling.temperature).call(
                tuple(each.tokens for each in inputs),
                num_sequences=len(inputs),
                num_tokens=sum(each.num_tokens for each in inputs),
                exclusive=exclusive,
                hold_seconds=hold_seconds(),
            )
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

    def _expects_answers(self) -> bool:
        """Return whether tasks are being answered whose completions will be scored next."""
        return self._num_generating > 0

    async def _generate(self, task: PromptTask, *, exclusive: bool) -> Sequence[Completion]:
        """Return the completions of a task; if a replica dies during the call, repeat it.

        Most replicas die of something else than a request, so all calls that were in progress are repeated
        together at first; those during which a second replica dies are repeated as exclusive calls, one
        after the other.

        Raises:
            UnusableResult: if a replica died during an exclusive call.
        """

        async def generate(*, exclusive: bool) -> Sequence[Completion]:
            call = self._clients.policy.generate(
                task.prompt_token_ids,
                task.sampling,
                num_samples=task.num_samples,
                min_version=task.min_version,
                request_id=f"{self._run}-{task.task_id}",
                exclusive=exclusive,
                fatal_to_replica=True,
                batched=True,
            )
            return await self._measured("generate", "policy", call, task=task.task_id)

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

    async def _score(self, items: Sequence[_Items], *, exclusive: bool) -> list[Scores]:
        flat = [item for task in items for item in task]
        found = await self._clients.reward.score(flat, exclusive=exclusive, fatal_to_replica=True)
        scores = _split(found.scores, items)
        tokens = _split(found.num_tokens or (0,) * len(found.scores), items)
        terms = {name: _split(values, items) for name, values in found.terms.items()}
        return [
            replace(
                found,
                scores=tuple(scores[index]),
                num_tokens=tuple(tokens[index]),
                terms={name: tuple(parts[index]) for name, parts in terms.items()},
            )
            for index in range(len(items))
        ]

    def _logprobs_at(
        self, client: AsyncReferenceClient, temperature: float
    ) -> CoalescedCalls[_Pairs, _Logprobs]:
        """Return the calls of one temperature, which share RPCs; most runs have a single temperature."""

        async def call(items: Sequence[_Pairs], *, exclusive: bool) -> list[_Logprobs]:
            pairs = [pair for task in items for pair in task]
            found = await client.logprobs(
                pairs, temperature=temperature, exclusive=exclusive, fatal_to_replica=True
            )
            return [tuple(rows) for rows in _split(found, items)]

        if temperature not in self._logprobs:
            self._logprobs[temperature] = CoalescedCalls(
                call, name="reference call", expects_more=self._expects_answers
            )
        return self._logprobs[temperature]

    async def _measured(self, stage: str, service: str, call: Awaitable[_T], *, task: int) -> _T:
        """Return the call's result and record its time.

        Raises:
            InvalidTask: if the service refused the input; the reason names the service.
        """
        with (
            tracing.span("reward" if stage == "score" else stage),
            self._metrics.stage(stage),
            watchdog.PROCESS.waiting(service, f"the {service}'s answer", task=task),
        ):
            try:
                return await call
            except InvalidInput as error:
                raise InvalidTask(f"refused_by_{service}", str(error)) from error


def _split(results: Sequence[_T], tasks: Sequence[Sequence[object]]) -> list[list[_T]]:
    """Return the results of each task, given those of all of them in order.

    Raises:
        CorruptData: if there are fewer or more results than items.
    """
    if len(results) != sum(map(len, tasks)):
        raise CorruptData(f"a service returned {len(results)} results for {sum(map(len, tasks))} sequences")
    rest = iter(results)
    return [list(itertools.islice(rest, len(task))) for task in tasks]


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
