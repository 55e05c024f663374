"""The three model services without models: real gRPC servers with scripted answers.

By default the policy answers with the prompt's ids reversed, the reward is the number of tokens, and every
reference log-prob is −1. A test can replace a part by a coroutine that answers differently, waits or aborts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc import aio

from fairlead import metrics
from fairlead.clients import AsyncPolicyClient, AsyncReferenceClient, AsyncRewardClient
from fairlead.clients.rollout import RolloutClients
from fairlead.rpc.retry import RetryPolicy
from fairlead.v1 import (
    policy_service_pb2,
    policy_service_pb2_grpc,
    reference_service_pb2,
    reference_service_pb2_grpc,
    reward_service_pb2,
    reward_service_pb2_grpc,
    tokens_pb2,
)
from services.rollout_worker.model_services import ModelServices
from services.runtime.streams import as_finished

Context = aio.ServicerContext[Any, Any]
VOCABULARY_SIZE, MAX_SEQUENCE_TOKENS = 50, 20


def model_info(name: str, fingerprint: str) -> tokens_pb2.ModelInfo:
    return tokens_pb2.ModelInfo(
        model_id=name,
        tokenizer_fingerprint=fingerprint,
        vocabulary_size=VOCABULARY_SIZE,
        max_sequence_tokens=MAX_SEQUENCE_TOKENS,
        dtype="float32",
    )


def completion(token_ids: list[int], *, incarnation: int = 9) -> tokens_pb2.Completion:
    version = tokens_pb2.WeightVersion(incarnation=incarnation, update=0)
    return tokens_pb2.Completion(
        token_ids=token_ids,
        logprobs=[-0.5] * len(token_ids),
        finish_reason=tokens_pb2.FINISH_REASON_STOP,
        version_spans=[tokens_pb2.VersionSpan(version=version, start=0, end=len(token_ids))],
        text=" ".join(str(token) for token in token_ids),
    )


async def answer_backwards(request: policy_service_pb2.GenerateRequest, _: Context) -> tokens_pb2.Completion:
    return completion(list(request.tokens.token_ids)[::-1])


async def score_length(item: reward_service_pb2.ScoreItem, _: Context) -> float:
    return float(len(item.tokens.response_token_ids) or len(item.text.response))


async def minus_one(
    sequence: reference_service_pb2.LogProbsSequence, temperature: float, _: Context
) -> list[float]:
    return [-temperature] * len(sequence.response_token_ids)


@dataclass
class Script:
    """The behaviour of the services; it may be replaced while they run."""

    generate: Callable[[policy_service_pb2.GenerateRequest, Context], Awaitable[tokens_pb2.Completion]] = (
        answer_backwards
    )
    score: Callable[[reward_service_pb2.ScoreItem, Context], Awaitable[float]] = score_length
    logprobs: Callable[[reference_service_pb2.LogProbsSequence, float, Context], Awaitable[list[float]]] = (
        minus_one
    )
    fingerprints: dict[str, str] = field(
        default_factory=lambda: {"policy": "one" * 20, "reward": "one" * 20, "reference": "one" * 20}
    )
    requests: list[policy_service_pb2.GenerateRequest] = field(default_factory=list)
    exclusive: dict[str, list[bool]] = field(default_factory=lambda: {"reward": [], "reference": []})
    batches: list[int] = field(default_factory=list)
    """Number of requests of each GenerateBatch call."""
    sizes: dict[str, list[int]] = field(default_factory=lambda: {"reward": [], "reference": []})
    """Number of sequences of each call."""
    address: str = ""

    def info(self, service: str) -> tokens_pb2.ModelInfo:
        return model_info(f"models/{service}", self.fingerprints[service])


class _Refused(Exception):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code, details


class _PartContext:
    """The context of one request of several: it aborts that request, or the call if the replica dies."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        if details == "Socket closed":
            await self._context.abort(code, details)
        raise _Refused(code, details)


class Policy(policy_service_pb2_grpc.PolicyServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def Generate(self, request, context):
        self.script.requests.append(request)
        found = [await self.script.generate(request, context) for _ in range(request.num_samples)]
        return policy_service_pb2.GenerateResponse(completions=found)

    async def GenerateBatch(self, request, context):
        self.script.batches.append(len(request.requests))

        async def answer(index, each):
            try:
                response = await self.Generate(each, _PartContext(context))
            except _Refused as error:
                refused = policy_service_pb2.GenerateBatchError(
                    code=error.code.value[0], message=error.details
                )
                return policy_service_pb2.GenerateBatchAnswer(index=index, error=refused)
            return policy_service_pb2.GenerateBatchAnswer(index=index, response=response)

        parts = [answer(index, each) for index, each in enumerate(request.requests)]
        async with aclosing(as_finished(parts)) as finished:
            async for answers in finished:
                yield policy_service_pb2.GenerateBatchResponse(answers=answers)

    async def GetPolicyInfo(self, request, context):
        version = tokens_pb2.WeightVersion(incarnation=1, update=0)
        return policy_service_pb2.GetPolicyInfoResponse(
            model=self.script.info("policy"), weight_version=version, max_slots=4, max_samples=4
        )


class Reward(reward_service_pb2_grpc.RewardServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def Score(self, request, context):
        self.script.exclusive["reward"].append(request.alone)
        self.script.sizes["reward"].append(len(request.items))
        scores = [await self.script.score(item, context) for item in request.items]
        return reward_service_pb2.ScoreResponse(
            scores=scores, model_version="judge-1", num_tokens=[1] * len(scores)
        )

    async def GetRewardInfo(self, request, context):
        return reward_service_pb2.GetRewardInfoResponse(
            model=self.script.info("reward"), model_version="judge-1"
        )


class Reference(reference_service_pb2_grpc.ReferenceServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def LogProbs(self, request, context):
        self.script.exclusive["reference"].append(request.alone)
        self.script.sizes["reference"].append(len(request.sequences))
        found = [
            await self.script.logprobs(sequence, request.temperature, context)
            for sequence in request.sequences
        ]
        return reference_service_pb2.LogProbsResponse(
            sequences=[reference_service_pb2.TokenLogProbs(logprobs=one) for one in found]
        )

    async def GetReferenceInfo(self, request, context):
        return reference_service_pb2.GetReferenceInfoResponse(model=self.script.info("reference"))


@asynccontextmanager
async def serving(script: Script, *, address: str = "127.0.0.1:0") -> AsyncIterator[aio.Server]:
    """Serve all three services on one port; write the address to `script.address`."""
    server = aio.server()
    policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(Policy(script), server)
    reward_service_pb2_grpc.add_RewardServiceServicer_to_server(Reward(script), server)
    reference_service_pb2_grpc.add_ReferenceServiceServicer_to_server(Reference(script), server)
    script.address = f"127.0.0.1:{server.add_insecure_port(address)}"
    await server.start()
    try:
        yield server
    finally:
        await server.stop(grace=0)


@asynccontextmanager
async def clients_of(address: str, *, timeout_seconds: float = 10.0) -> AsyncIterator[RolloutClients]:
    """Yield real clients that make up to two attempts."""
    retry = RetryPolicy(max_attempts=2, initial_backoff_seconds=0.01)
    clients = RolloutClients(
        AsyncPolicyClient(address, timeout_seconds=timeout_seconds, retry=retry),
        AsyncRewardClient(address, timeout_seconds=timeout_seconds, retry=retry),
        AsyncReferenceClient(address, timeout_seconds=timeout_seconds, retry=retry),
    )
    try:
        yield clients
    finally:
        await clients.close()


@asynccontextmanager
async def model_services_of(
    script: Script, *, worker_metrics: metrics.WorkerMetrics, timeout_seconds: float = 10.0
) -> AsyncIterator[ModelServices]:
    """Yield the services as a worker of the run `tests` uses them."""
    async with serving(script), clients_of(script.address, timeout_seconds=timeout_seconds) as clients:
        yield await ModelServices.connect(clients, run="tests", worker_metrics=worker_metrics)
