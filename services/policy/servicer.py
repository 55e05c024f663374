"""The RPCs of the policy service: messages → checked requests → engine → messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from itertools import starmap
from typing import Any

from grpc import aio

from fairlead import codec
from fairlead.config.serving import PolicySection
from fairlead.data.chat import Prompt
from fairlead.errors import InvalidInput
from fairlead.types import GenerationRequest, ModelInfo, WeightVersion
from fairlead.v1 import policy_service_pb2 as pb
from fairlead.v1 import policy_service_pb2_grpc as pb_grpc
from services.policy.engine import Engine
from services.policy.requests import (
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    check_request,
    checked_chat,
)
from services.runtime.access.control import caller
from services.runtime.edge import deadline, start_notice
from services.runtime.error_reply import ErrorReply
from services.runtime.limits import MAX_TURNS, check_count, check_text
from services.runtime.rpc_call import current_call
from services.runtime.streams import as_finished
from services.runtime.wire_limits import WireLimits

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name
"""Full name of the service, for health and reflection."""

MAX_BATCH_REQUESTS = 64
"""Limit on the requests that share a GenerateBatch call."""

_GENERATE = f"/{SERVICE_NAME}/Generate"
_BATCH = f"{pb.GenerateBatchRequest.DESCRIPTOR.full_name}.requests"
_LONG_TEXT = 10_000
"""Number of characters from which a text is tokenized in a thread, because it would block the event loop."""

_Context = aio.ServicerContext[Any, Any]


def wire_limits(model: ModelInfo, *, max_text_bytes: int) -> WireLimits:
    """Return what a request may contain; `check_request` refuses smaller excesses, with their number."""
    return WireLimits(
        entries={
            _BATCH: MAX_BATCH_REQUESTS,
            "fairlead.v1.Conversation.messages": MAX_TURNS,
            "fairlead.v1.SamplingParams.stop_strings": 4 * MAX_STOP_STRINGS,
            "fairlead.v1.SamplingParams.stop_token_ids": 4 * MAX_STOP_TOKEN_IDS,
        },
        max_text_bytes=max_text_bytes,
        max_numbers=4 * (model.max_sequence_tokens + MAX_STOP_TOKEN_IDS),
        whole=frozenset({_BATCH}),
    )


class PolicyServicer(pb_grpc.PolicyServiceServicer):
    """Implements fairlead.v1.PolicyService."""

    def __init__(
        self,
        engine: Engine,
        section: PolicySection,
        *,
        encode: Callable[[Prompt], list[int]],
        on_newer_weights: Callable[[WeightVersion], None],
    ) -> None:
        """
        Args:
            engine: generates completions.
            section: limits.
            encode: returns the token ids of a prompt.
            on_newer_weights: called with the version that a request needs, if it is not in use yet.
        """
        self._engine = engine
        self._section = section
        self._encode = encode
        self._on_newer_weights = on_newer_weights

    def add_to(self, server: aio.Server) -> None:
        """Register the servicer."""
        pb_grpc.add_PolicyServiceServicer_to_server(self, server)

    async def Generate(self, request: pb.GenerateRequest, context: _Context) -> pb.GenerateResponse:
        """Generate completions of a prompt."""
        return await self._generated(
            request, _earlier(self._deadline(context), request), on_start=start_notice(context)
        )

    async def GenerateBatch(
        self, request: pb.GenerateBatchRequest, context: _Context
    ) -> AsyncIterator[pb.GenerateBatchResponse]:
        """Generate completions of several prompts, and send those of each when they are finished."""
        check_count("requests", len(request.requests), limit=MAX_BATCH_REQUESTS)
        call, until = current_call(), self._deadline(context)

        async def answer(index: int, asked: pb.GenerateRequest) -> pb.GenerateBatchAnswer:
            found = await call.answer_part(
                lambda: self._part(asked, until),
                method=_GENERATE,
                request=asked,
                request_id=asked.request_id,
                is_counted=index == 0,
                traceparent=asked.traceparent,
            )
            if isinstance(found, ErrorReply):
                return pb.GenerateBatchAnswer(index=index, error=_error(found))
            return pb.GenerateBatchAnswer(index=index, response=found)

        async with aclosing(as_finished(starmap(answer, enumerate(request.requests)))) as finished:
            async for answers in finished:
                yield pb.GenerateBatchResponse(answers=answers)

    async def _part(self, request: pb.GenerateRequest, until: float) -> pb.GenerateResponse:
        if request.alone:
            raise InvalidInput(
                "alone", got=True, allowed="false in GenerateBatch: an exclusive request is sent to Generate"
            )
        return await self._generated(request, _earlier(until, request))

    async def _generated(
        self,
        request: pb.GenerateRequest,
        until: float,
        *,
        on_start: Callable[[], None] | None = None,
    ) -> pb.GenerateResponse:
        checked = await self._checked(request)
        reserved = await _reserve(checked)
        completions = await self._engine.generate(checked, deadline=until, on_start=on_start)
        await _refund(reserved - sum(len(completion.token_ids) for completion in completions))
        return pb.GenerateResponse(
            completions=map(codec.completion_to_pb, completions), prompt_tokens=len(checked.prompt_token_ids)
        )

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: _Context
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """Generate completions of a prompt, and send each token when it is sampled."""
        until = _earlier(self._deadline(context), request.request)
        checked = await self._checked(request.request)
        unused = await _reserve(checked)
        async with aclosing(self._engine.stream(checked, deadline=until)) as deltas:
            async for index, delta in deltas:
                unused -= len(delta.token_ids)
                yield pb.GenerateStreamResponse(
                    sample_index=index,
                    delta=codec.completion_to_pb(delta),
                    prompt_tokens=len(checked.prompt_token_ids),
                )
        await _refund(unused)

    async def GetPolicyInfo(
        self, request: pb.GetPolicyInfoRequest, context: _Context
    ) -> pb.GetPolicyInfoResponse:
        """Describe the served model."""
        info = self._engine.info
        return pb.GetPolicyInfoResponse(
            model=codec.model_info_to_pb(info.model),
            weight_version=codec.version_to_pb(info.weight_version),
            max_slots=info.max_slots,
            max_samples=info.max_samples,
        )

    async def _checked(self, request: pb.GenerateRequest) -> GenerationRequest:
        if not request.HasField("sampling"):
            raise InvalidInput("sampling", got="nothing", allowed="sampling parameters")
        info = self._engine.info
        checked = GenerationRequest(
            request_id=request.request_id,
            prompt_token_ids=await self._prompt(request),
            sampling=codec.sampling_from_pb(request.sampling),
            num_samples=request.num_samples,
            min_version=codec.version_from_pb(request.min_version)
            if request.HasField("min_version")
            else None,
            exclusive=request.alone,
        )
        check_request(checked, info.model, max_samples=info.max_samples)
        if checked.min_version is not None and checked.min_version > info.weight_version:
            self._on_newer_weights(checked.min_version)
        return checked

    async def _prompt(self, request: pb.GenerateRequest) -> tuple[int, ...]:
        match request.WhichOneof("prompt"):
            case "tokens":
                return tuple(request.tokens.token_ids)
            case "text":
                if not request.text:
                    raise InvalidInput("text", got="", allowed="a non-empty text")
                check_text("text", request.text, max_bytes=self._section.max_text_bytes)
                return await self._ids(request.text, len(request.text))
            case "conversation":
                turns = codec.messages_from_pb(request.conversation.messages)
                chat = checked_chat(turns, max_bytes=self._section.max_text_bytes)
                return await self._ids(chat, sum(len(turn.content) for turn in turns))
            case _:
                raise InvalidInput("prompt", got="nothing", allowed="tokens, text or a conversation")

    async def _ids(self, prompt: Prompt, num_characters: int) -> tuple[int, ...]:
        if num_characters < _LONG_TEXT:
            return tuple(self._encode(prompt))
        return tuple(await asyncio.to_thread(self._encode, prompt))

    def _deadline(self, context: _Context) -> float:
        """Return the caller's deadline, or one from `policy.timeout_seconds` if it has none."""
        given = deadline(context)
        return time.monotonic() + self._section.timeout_seconds if given is None else given


def _earlier(until: float, request: pb.GenerateRequest) -> float:
    """Return the deadline of a call, or that of the request if it is earlier.

    Raises:
        InvalidInput: if the request's is not a number of seconds.
    """
    seconds = request.timeout_seconds
    if not seconds >= 0:
        raise InvalidInput("timeout_seconds", got=seconds, allowed="0 (no deadline of its own) or more")
    return min(until, time.monotonic() + seconds) if seconds else until


def _error(reply: ErrorReply) -> pb.GenerateBatchError:
    return pb.GenerateBatchError(
        code=reply.code.value[0],
        message=reply.message,
        retry_after_seconds=reply.retry_after_seconds or 0.0,
        replica_lost=reply.replica_lost,
    )


async def _reserve(request: GenerationRequest) -> int:
    """Count the tokens of the prompt and of the longest possible completions; return the latter.

    They are counted beforehand, so that a caller that cancels just before the end still pays for its tokens.
    """
    longest = request.num_samples * request.sampling.max_new_tokens
    await caller().admit(tokens=len(request.prompt_token_ids) + longest)
    return longest


async def _refund(num_tokens: int) -> None:
    """Refund reserved tokens that were not generated."""
    if num_tokens:
        await caller().charge(tokens=-num_tokens)
