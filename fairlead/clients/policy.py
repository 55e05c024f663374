"""The client of the policy service, which returns completions of a prompt.

Sits between its users and `fairlead.rpc`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypedDict, Unpack, cast

from grpc import aio

from fairlead import codec, tracing
from fairlead.clients.blocking import Blocking
from fairlead.clients.client import AsyncClient, building, token_limit
from fairlead.clients.generate_batches import GenerateBatches
from fairlead.errors import CorruptData
from fairlead.types import (
    Completion,
    Generated,
    GeneratedPiece,
    Message,
    PolicyInfo,
    SamplingParams,
    WeightVersion,
)
from fairlead.v1 import policy_service_pb2 as pb
from fairlead.v1 import policy_service_pb2_grpc as pb_grpc
from fairlead.v1 import tokens_pb2

logger = logging.getLogger(__name__)

Prompt = str | Sequence[int] | Sequence[Message]
"""Text, which the service tokenizes; token ids; or messages, rendered with the model's chat template."""


class GenerateOptions(TypedDict, total=False):
    """Options of `generate` and `generate_stream`."""

    num_samples: int
    """Number of completions. Default: 1."""
    min_version: WeightVersion | None
    """Oldest weights allowed; a replica with older ones waits for newer ones."""
    exclusive: bool
    """The replica computes nothing else meanwhile, and the call is not hedged; for a prompt that may kill a
    replica. Implies `fatal_to_replica`."""
    fatal_to_replica: bool
    """Raise ReplicaLost if a replica dies during the call, instead of retrying on another."""
    request_id: str | None
    """Id of the request in logs. Default: random."""
    max_request_tokens: int | None
    """Largest number of tokens of the request. Default: the limit of the service."""
    timeout_seconds: float | None
    """Deadline of this call. Default: that of the client."""
    batched: bool
    """`generate` sends it in one call with others that begin within 2 ms, for callers with many prompts at
    once. Results and errors are the same."""


@dataclass(frozen=True, slots=True)
class _Stub:
    """What a client calls of a replica."""

    rpc: pb_grpc.PolicyServiceAsyncStub
    batches: GenerateBatches
    """Called like `rpc.Generate`."""


class AsyncPolicyClient(AsyncClient[_Stub]):
    """Generates completions. Used within one event loop."""

    _service = "policy"
    _timeout_seconds = 120.0
    _reported_old_service = False

    def _make_stub(self, channel: aio.Channel) -> _Stub:
        rpc: pb_grpc.PolicyServiceAsyncStub = pb_grpc.PolicyServiceStub(channel)
        return _Stub(rpc, GenerateBatches(rpc, on_missing=self._report_old_service))

    def _report_old_service(self) -> None:
        if not self._reported_old_service:
            logger.info(
                "a policy service has no GenerateBatch (an older version): every prompt has its own call"
            )
        self._reported_old_service = True

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams, **options: Unpack[GenerateOptions]
    ) -> list[Completion]:
        """Return the completions of a prompt, one for each sample, in order.

        Raises:
            InvalidInput: if the service refuses the prompt or a parameter.
            StaleWeights: if no replica gets weights as new as `min_version` in time.
            FairleadError: Unavailable, Overloaded, DeadlineExceeded …, after retries.
        """
        return list((await self.answer(prompt, sampling, **options)).completions)

    async def answer(
        self, prompt: Prompt, sampling: SamplingParams, **options: Unpack[GenerateOptions]
    ) -> Generated:
        """Return the completions, as `generate`, and the number of prompt tokens.

        Raises:
            FairleadError: as `generate`.
        """
        request = _request(prompt, sampling, options)
        batched = options.get("batched", False) and not request.alone
        response = await self._replicas.call(
            (lambda stub: stub.batches) if batched else (lambda stub: stub.rpc.Generate),
            request,
            timeout_seconds=options.get("timeout_seconds"),
            metadata=token_limit(options.get("max_request_tokens")),
            fatal_to_replica=options.get("fatal_to_replica", False),
            exclusive=request.alone,
            traced=not batched,  # requests share a call only if their metadata is the same
        )
        if len(response.completions) != request.num_samples:
            raise CorruptData(
                f"policy: received {len(response.completions)} completions for {request.num_samples} samples"
            )
        return Generated(tuple(map(codec.completion_from_pb, response.completions)), response.prompt_tokens)

    async def generate_stream(
        self, prompt: Prompt, sampling: SamplingParams, **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[tuple[int, Completion]]:
        """Yield new tokens as they are sampled: the index of the sample, and its next piece.

        The last piece of a sample has a finish reason.

        Raises:
            FairleadError: as `generate`; a stream that breaks after its first piece is not retried.
        """
        async with aclosing(self.answer_stream(prompt, sampling, **options)) as pieces:
            async for piece in pieces:
                yield piece.index, piece.delta

    async def answer_stream(
        self, prompt: Prompt, sampling: SamplingParams, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[GeneratedPiece, None]:
        """Yield pieces, as `generate_stream`, with the number of prompt tokens. Closing it cancels the
        request.

        Raises:
            FairleadError: as `generate_stream`.
        """
        request = pb.GenerateStreamRequest(request=_request(prompt, sampling, options))
        stream = self._replicas.stream(
            lambda stub: stub.rpc.GenerateStream,
            request,
            timeout_seconds=options.get("timeout_seconds"),
            metadata=token_limit(options.get("max_request_tokens")),
        )
        async with aclosing(stream):
            async for response in stream:
                delta = codec.completion_from_pb(response.delta)
                yield GeneratedPiece(response.sample_index, delta, response.prompt_tokens)

    async def info(self, *, timeout_seconds: float | None = None) -> PolicyInfo:
        """Return the model that is served, and its weight version.

        Raises:
            FairleadError: as `generate`.
        """
        response = await self._replicas.call(
            lambda stub: stub.rpc.GetPolicyInfo, pb.GetPolicyInfoRequest(), timeout_seconds=timeout_seconds
        )
        return PolicyInfo(
            model=codec.model_info_from_pb(response.model),
            weight_version=codec.version_from_pb(response.weight_version),
            max_slots=response.max_slots,
            max_samples=response.max_samples,
        )


class PolicyClient(Blocking[AsyncPolicyClient]):
    """`AsyncPolicyClient` for scripts and notebooks: the same methods, blocking."""

    _kind = AsyncPolicyClient

    def generate(
        self, prompt: Prompt, sampling: SamplingParams, **options: Unpack[GenerateOptions]
    ) -> list[Completion]:
        """As `AsyncPolicyClient.generate`."""
        return self._run(self._client.generate(prompt, sampling, **options))

    def generate_stream(
        self, prompt: Prompt, sampling: SamplingParams, **options: Unpack[GenerateOptions]
    ) -> Iterator[tuple[int, Completion]]:
        """As `AsyncPolicyClient.generate_stream`."""
        return self._iterate(self._client.generate_stream(prompt, sampling, **options))

    def info(self, *, timeout_seconds: float | None = None) -> PolicyInfo:
        """As `AsyncPolicyClient.info`."""
        return self._run(self._client.info(timeout_seconds=timeout_seconds))


def _request(prompt: Prompt, sampling: SamplingParams, options: GenerateOptions) -> pb.GenerateRequest:
    with building("prompt or sampling"):
        request = pb.GenerateRequest(
            request_id=options.get("request_id") or secrets.token_hex(8),
            sampling=codec.sampling_to_pb(sampling),
            num_samples=options.get("num_samples", 1),
            alone=options.get("exclusive", False),
            traceparent=tracing.traceparent() or "",
        )
        if isinstance(prompt, str):
            request.text = prompt
        elif prompt and isinstance(prompt[0], Message):
            turns = [turn for turn in prompt if isinstance(turn, Message)]
            request.conversation.messages.extend(codec.messages_to_pb(turns))
        else:
            request.tokens.CopyFrom(tokens_pb2.TokenSequence(token_ids=cast(Sequence[int], prompt)))
        min_version = options.get("min_version")
        if min_version is not None:
            request.min_version.CopyFrom(codec.version_to_pb(min_version))
    return request
