"""Model services that only wait, as long as real ones would: `python -m benchmarks.scale.waiting_services`.

All three listen on one port, which is printed. Answers have real sizes, without a model. The queue, the
workers and the dispatcher that a benchmark measures with them are real.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import starmap
from typing import Any

import grpc
from grpc import aio

from fairlead.v1 import (
    policy_service_pb2,
    policy_service_pb2_grpc,
    reference_service_pb2,
    reference_service_pb2_grpc,
    reward_service_pb2,
    reward_service_pb2_grpc,
    tokens_pb2,
)
from services.runtime.streams import as_finished

VOCABULARY = 32_000
_Context = aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Waits:
    """Delays of the services and lengths of their answers."""

    generate_seconds: float
    """Mean seconds of one answer; drawn uniformly from 0.5 to 1.5 times of it."""
    score_seconds: float
    """Seconds of one call of reward or reference."""
    tokens: int
    """Tokens of an answer."""


def _info(name: str) -> tokens_pb2.ModelInfo:
    return tokens_pb2.ModelInfo(
        model_id=name,
        tokenizer_fingerprint="0" * 64,
        vocabulary_size=VOCABULARY,
        max_sequence_tokens=131_072,
        dtype="float32",
    )


class WaitingPolicy(policy_service_pb2_grpc.PolicyServiceServicer):
    """Answers every prompt with the same ids, made by the requested weights."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits
        self._random = random.Random(0)
        self._ids = [self._random.randrange(VOCABULARY) for _ in range(waits.tokens)]
        self._logprobs = [-self._random.random() for _ in self._ids]

    async def Generate(  # noqa: N802
        self, request: policy_service_pb2.GenerateRequest, context: _Context
    ) -> policy_service_pb2.GenerateResponse:
        """Wait, then answer."""
        await asyncio.sleep(self._waits.generate_seconds * self._random.uniform(0.5, 1.5))
        span = tokens_pb2.VersionSpan(version=request.min_version, start=0, end=len(self._ids))
        completion = tokens_pb2.Completion(
            token_ids=self._ids,
            logprobs=self._logprobs,
            finish_reason=tokens_pb2.FINISH_REASON_STOP,
            version_spans=[span],
        )
        return policy_service_pb2.GenerateResponse(
            completions=[completion], prompt_tokens=len(request.tokens.token_ids)
        )

    async def GenerateBatch(  # noqa: N802
        self, request: policy_service_pb2.GenerateBatchRequest, context: _Context
    ) -> AsyncIterator[policy_service_pb2.GenerateBatchResponse]:
        """Wait for each request, then answer it."""

        async def answer(
            index: int, asked: policy_service_pb2.GenerateRequest
        ) -> policy_service_pb2.GenerateBatchAnswer:
            response = await self.Generate(asked, context)
            return policy_service_pb2.GenerateBatchAnswer(index=index, response=response)

        async with aclosing(as_finished(starmap(answer, enumerate(request.requests)))) as finished:
            async for answers in finished:
                yield policy_service_pb2.GenerateBatchResponse(answers=answers)

    async def GenerateStream(  # noqa: N802
        self, request: policy_service_pb2.GenerateStreamRequest, context: _Context
    ) -> AsyncIterator[policy_service_pb2.GenerateStreamResponse]:
        """Reject the call: workers do not stream."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "these services only wait")
        yield policy_service_pb2.GenerateStreamResponse()

    async def GetPolicyInfo(  # noqa: N802
        self, request: policy_service_pb2.GetPolicyInfoRequest, context: _Context
    ) -> policy_service_pb2.GetPolicyInfoResponse:
        """Return the served model."""
        return policy_service_pb2.GetPolicyInfoResponse(
            model=_info("policy"), max_slots=4_096, max_samples=64
        )


class WaitingReward(reward_service_pb2_grpc.RewardServiceServicer):
    """Gives every item the same score."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits

    async def Score(  # noqa: N802
        self, request: reward_service_pb2.ScoreRequest, context: _Context
    ) -> reward_service_pb2.ScoreResponse:
        """Wait, then answer."""
        await asyncio.sleep(self._waits.score_seconds)
        count = len(request.items)
        return reward_service_pb2.ScoreResponse(
            scores=[0.5] * count, model_version="waits", num_tokens=[self._waits.tokens] * count
        )

    async def ScoreStream(  # noqa: N802
        self, request_iterator: AsyncIterator[reward_service_pb2.ScoreStreamRequest], context: _Context
    ) -> AsyncIterator[reward_service_pb2.ScoreStreamResponse]:
        """Reject the call: workers do not stream."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "these services only wait")
        yield reward_service_pb2.ScoreStreamResponse()

    async def GetRewardInfo(  # noqa: N802
        self, request: reward_service_pb2.GetRewardInfoRequest, context: _Context
    ) -> reward_service_pb2.GetRewardInfoResponse:
        """Return the served model."""
        return reward_service_pb2.GetRewardInfoResponse(model=_info("reward"), model_version="waits")


class WaitingReference(reference_service_pb2_grpc.ReferenceServiceServicer):
    """Gives every token the same log-prob."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits

    async def LogProbs(  # noqa: N802
        self, request: reference_service_pb2.LogProbsRequest, context: _Context
    ) -> reference_service_pb2.LogProbsResponse:
        """Wait, then answer."""
        await asyncio.sleep(self._waits.score_seconds)
        found = [
            reference_service_pb2.TokenLogProbs(logprobs=[-1.0] * len(sequence.response_token_ids))
            for sequence in request.sequences
        ]
        return reference_service_pb2.LogProbsResponse(sequences=found)

    async def GetReferenceInfo(  # noqa: N802
        self, request: reference_service_pb2.GetReferenceInfoRequest, context: _Context
    ) -> reference_service_pb2.GetReferenceInfoResponse:
        """Return the served model."""
        return reference_service_pb2.GetReferenceInfoResponse(model=_info("reference"))


async def serve(waits: Waits) -> None:
    """Serve until a signal."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(WaitingPolicy(waits), server)
    reward_service_pb2_grpc.add_RewardServiceServicer_to_server(WaitingReward(waits), server)
    reference_service_pb2_grpc.add_ReferenceServiceServicer_to_server(WaitingReference(waits), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await stop.wait()
    await server.stop(None)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and serve."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale.waiting_services", description=__doc__)
    parser.add_argument("--generate-seconds", type=float, required=True)
    parser.add_argument("--score-seconds", type=float, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    flags = parser.parse_args(argv)
    asyncio.run(serve(Waits(flags.generate_seconds, flags.score_seconds, flags.tokens)))


if __name__ == "__main__":
    main()
