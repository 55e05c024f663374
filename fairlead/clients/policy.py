"""The client of the policy service: completions of a prompt. Between users or workers and the channel."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import TypedDict, Unpack, cast

from grpc import aio

from fairlead import codec
from fairlead.clients.blocking import Blocking
from fairlead.clients.client import AsyncClient
from fairlead.clients.requests import building, limits
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

Prompt = str | Sequence[int] | Sequence[Message]
"""Text, tokenized by the service, token ids, or turns of a conversation, rendered by its chat template."""


class GenerateOptions(TypedDict, total=False):
    """Options of `generate` and `generate_stream`."""

    num_samples: int
    """Completions wanted; 1 if not given."""
    min_version: WeightVersion | None
    """Weights at least this new must answer; a replica without them waits for them."""
    exclusive: bool
    """The replica computes nothing else meanwhile, and the call is not hedged; implies `fatal_to_replica`.
    For prompts that may be at fault."""
    fatal_to_replica: bool
    """Raise ReplicaLost if a replica dies under it, instead of trying the next."""
    request_id: str | None
    """Names the request in logs; a random one if not given."""
    max_request_tokens: int | None
    """The service refuses the request if it holds more tokens; as many as the service takes if not given."""
    timeout_seconds: float | None
    """Deadline of this call in place of the client's."""


class AsyncPolicyClient(AsyncClient["pb_grpc.PolicyServiceAsyncStub"]):
    """Generates completions; used within one event loop."""

    _service = "policy"
    _timeout_seconds = 120.0

    def _make_stub(self, channel: aio.Channel) -> pb_grpc.PolicyServiceAsyncStub:
        return pb_grpc.PolicyServiceStub(channel)

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams, **options: Unpack[GenerateOptions]
    ) -> list[Completion]:
        """Completions of a prompt, one for each sample, in order.

        Raises:
            InvalidInput: for a prompt or parameters that the service refuses.
            StaleWeights: if no replica got weights as new as `min_version` in time.
            FairleadError: Unavailable, Overloaded, DeadlineExceeded … once trying again has not helped.
        """
        return list((await self.answer(prompt, sampling, **options)).completions)

    async def answer(
        self, prompt: Prompt, sampling: SamplingParams, **options: Unpack[GenerateOptions]
    ) -> Generated:
        """As `generate`, with what else the service says.

        Raises:
            FairleadError: as `generate`.
        """
        request = _request(prompt, sampling, options)
        response = await self._replicas.call(
            lambda stub: stub.Generate,
            request,
            timeout_seconds=options.get("timeout_seconds"),
            metadata=limits(options.get("max_request_tokens")),
            fatal_to_replica=options.get("fatal_to_replica", False),
            exclusive=request.alone,
        )
        if len(response.completions) != request.num_samples:
            raise CorruptData(
                f"policy: {len(response.completions)} completions for {request.num_samples} samples"
            )
        return Generated(tuple(map(codec.completion_from_pb, response.completions)), response.prompt_tokens)

    async def generate_stream(
        self, prompt: Prompt, sampling: SamplingParams, **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[tuple[int, Completion]]:
        """What is new, as it is sampled: (index of the sample, its next piece).

        The last piece of a sample has a finish reason.

        Raises:
            FairleadError: as `generate`; a stream that broke after its first piece is not begun again.
        """
        async with aclosing(self.answer_stream(prompt, sampling, **options)) as pieces:
            async for piece in pieces:
                yield piece.index, piece.delta

    async def answer_stream(
        self, prompt: Prompt, sampling: SamplingParams, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[GeneratedPiece, None]:
        """As `generate_stream`, with what else the service says. Closing it ends the work.

        Raises:
            FairleadError: as `generate_stream`.
        """
        request = pb.GenerateStreamRequest(request=_request(prompt, sampling, options))
        stream = self._replicas.stream(
            lambda stub: stub.GenerateStream,
            request,
            timeout_seconds=options.get("timeout_seconds"),
            metadata=limits(options.get("max_request_tokens")),
        )
        async with aclosing(stream):
            async for response in stream:
                delta = codec.completion_from_pb(response.delta)
                yield GeneratedPiece(response.sample_index, delta, response.prompt_tokens)

    async def info(self, *, timeout_seconds: float | None = None) -> PolicyInfo:
        """What is served, and with which weights.

        Raises:
            FairleadError: as `generate`.
        """
        response = await self._replicas.call(
            lambda stub: stub.GetPolicyInfo, pb.GetPolicyInfoRequest(), timeout_seconds=timeout_seconds
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
