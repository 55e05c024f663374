"""The RPCs of the policy service: messages → checked requests → engine → messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
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
from services.runtime.limits import MAX_TURNS, check_text
from services.runtime.wire_limits import WireLimits

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name
"""Full name of the service, for health and reflection."""

_LONG_TEXT = 10_000
"""Number of characters from which a text is tokenized in a thread, because it would block the event loop."""

_Context = aio.ServicerContext[Any, Any]


def wire_limits(model: ModelInfo, *, max_text_bytes: int) -> WireLimits:
    """Return what a request may contain; `check_request` refuses smaller excesses, with their number."""
    return WireLimits(
        entries={
            "fairlead.v1.Conversation.messages": MAX_TURNS,
            "fairlead.v1.SamplingParams.stop_strings": 4 * MAX_STOP_STRINGS,
            "fairlead.v1.SamplingParams.stop_token_ids": 4 * MAX_STOP_TOKEN_IDS,
        },
        max_text_bytes=max_text_bytes,
        max_numbers=4 * (model.max_sequence_tokens + MAX_STOP_TOKEN_IDS),
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
        checked = await self._checked(request)
        reserved = await _reserve(checked)
        completions = await self._engine.generate(
            checked, deadline=self._deadline(context), on_start=start_notice(context)
        )
        await _refund(reserved - sum(len(completion.token_ids) for completion in completions))
        return pb.GenerateResponse(
            completions=map(codec.completion_to_pb, completions), prompt_tokens=len(checked.prompt_token_ids)
        )

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: _Context
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """Generate completions of a prompt, and send each token when it is sampled."""
        checked = await self._checked(request.request)
        unused = await _reserve(checked)
        async with aclosing(self._engine.stream(checked, deadline=self._deadline(context))) as deltas:
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
