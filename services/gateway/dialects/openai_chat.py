"""OpenAI's `POST /v1/chat/completions` for the policy: bodies, whole answers, and streamed ones.

Options that would change the answer and that the policy service does not support are refused, not ignored.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fairlead.errors import CorruptData, InvalidInput
from fairlead.types import Completion, GeneratedPiece, Message, SamplingParams
from services.gateway import error_formats
from services.gateway.backend import Backend
from services.gateway.collection import Collector, Exchange
from services.gateway.dialects.openai_models import OpenAiError, check_model
from services.gateway.dialects.unread import check_messages, check_request, check_stream_options
from services.gateway.exchange_log import ExchangeLog
from services.runtime.access.control import caller
from services.runtime.caller_fields import Places, caller_fields
from services.runtime.http.body import json_route
from services.runtime.http.call import CurrentCall, HttpCall
from services.runtime.http.conversations import MetadataBody
from services.runtime.http.failures import error_responses, failure_of
from services.runtime.http.json_limits import BodyLimits

_ROLES = {"developer": "system"}
"""Newer names of roles, and those that chat templates know."""
_MAX_TURNS = 4_096
_FIELDS = {
    "request": "messages",
    "prompt": "messages",
    "prompt or sampling": "messages",
    "tokens": "messages",
    "conversation.messages": "messages[]",
    "num_samples": "n",
    "sampling.temperature": "temperature",
    "sampling.top_p": "top_p",
    "sampling.top_k": "top_k",
}
"""Fields of the policy service as callers know them."""
_STREAMED = {
    "description": "The answers. With `stream`: chunks of them as server-sent events, then `[DONE]`.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


class _ChatBody(BaseModel):
    """A part of a request. `unread` decides which other keys are accepted."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class TextPart(_ChatBody):
    """A part of a message."""

    type: Literal["text"]
    """Only text is supported."""
    text: str
    """The text."""


class ChatMessage(_ChatBody):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    """Author of the message; `developer` is treated as `system`."""
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    """The text, whole or in parts."""

    def message(self) -> Message:
        """Convert it to the services' type."""
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return Message(_ROLES.get(self.role, self.role), text)


class ChatStreamOptions(_ChatBody):
    """Options of a stream."""

    include_usage: bool = False
    """Whether to send the number of tokens in a last chunk."""


class ChatRequest(_ChatBody):
    """A conversation for the policy to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "policy",
                    "messages": [{"role": "user", "content": "my lamp arrived broken ."}],
                    "max_completion_tokens": 64,
                }
            ]
        }
    )

    model: str | None = None
    """An id from /v1/models, or `policy`; absent or empty is the policy, too."""
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=_MAX_TURNS, fail_fast=True)]
    """The conversation so far. Its last turn must not be the assistant's."""
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Maximum number of tokens of an answer."""
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Older name of `max_completion_tokens`."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """The logits are divided by it; 1 by default."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Probability mass kept in nucleus sampling; 1 by default."""
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """Number of most likely tokens kept; 0 and -1 keep all."""
    n: Annotated[int, Field(ge=1, le=4_096)] | None = None
    """Number of answers; the policy service may allow fewer."""
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    """Texts that end an answer; they are not part of it."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same seed and weights give the same answers; random by default."""
    stream: bool | None = None
    """Whether to send the answer as it is generated, as server-sent events."""
    stream_options: ChatStreamOptions | None = None
    """Options of the stream."""
    store: Annotated[bool, Field(strict=True)] | None = None
    """Whether the conversation may be kept for people to rank answers to it; see `gateway.collect`."""
    user: Annotated[str, Field(max_length=1_024)] | None = None
    """The end user. Of a conversation that is kept only a keyed hash is, by which they can be forgotten."""
    safety_identifier: Annotated[str, Field(max_length=1_024)] | None = None
    """Newer name of `user`."""
    metadata: MetadataBody | None = None
    """Kept with a conversation that is kept."""

    @model_validator(mode="before")
    @classmethod
    def _check_unread(cls, body: object) -> object:
        check_request(body, frozenset(cls.model_fields))
        check_messages(body)
        check_stream_options(body)
        return body

    def turns(self) -> tuple[Message, ...]:
        """Convert the messages to the services' type.

        Raises:
            InvalidInput: the last message is the assistant's.
        """
        if self.messages[-1].role == "assistant":
            raise InvalidInput(
                "messages",
                index=len(self.messages) - 1,
                got="a last message of the assistant",
                allowed="a last message of the user or the system",
            )
        return tuple(message.message() for message in self.messages)

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer, without empty ones."""
        given = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return tuple(text for text in given if text)

    def sampling(self, *, default_max_tokens: int) -> SamplingParams:
        """Return the sampling parameters; `default_max_tokens` applies if the request sets no limit."""
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            max_new_tokens=self.max_completion_tokens or self.max_tokens or default_max_tokens,
            stop_strings=self.stops,
            seed=secrets.randbits(62) if self.seed is None else self.seed,
        )

    def service_fields(self, index: int | None) -> Places:
        """Return the fields of the policy service as this request names them, for the index of an error."""
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        stop = "stop" if isinstance(self.stop, str) else stop_field("stop", self.stop or (), index)
        return {**_FIELDS, "sampling.max_new_tokens": limit, "sampling.stop_strings": stop}


class AnswerMessage(BaseModel):
    """The policy's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatUsage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(BaseModel):
    """OpenAI's chat completion."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    """Version of the weights that generated the first token."""
    choices: list[Choice]
    usage: ChatUsage


def router(
    backend: Backend,
    *,
    exchange_log: ExchangeLog | None,
    collector: Collector | None,
    default_max_tokens: int,
) -> APIRouter:
    """Return the route.

    Args:
        backend: the services to call.
        exchange_log: where prompts and answers are logged, if they are.
        collector: sends prompts to the feedback service, if it is asked for.
        default_max_tokens: maximum tokens of an answer whose request sets no limit.
    """
    limits = BodyLimits(
        entries={"messages": _MAX_TURNS, "messages[].content": _MAX_TURNS, "stop": 16},
        max_text_bytes=backend.max_prompt_bytes,
    )
    routes = APIRouter(
        tags=["OpenAI"],
        route_class=json_route(lambda: limits),
        responses={200: _STREAMED, **error_responses(OpenAiError)},
    )

    @routes.post("/v1/chat/completions", response_model=ChatResponse, summary="Complete a conversation")
    async def chat(body: ChatRequest, call: CurrentCall) -> Response:
        """Generate the policy's answer to the last message."""
        check_model(body.model, backend.policy)
        turns = body.turns()
        exchange = _ChatExchange(
            call,
            model=backend.policy_model,
            turns=turns,
            sampling=body.sampling(default_max_tokens=default_max_tokens),
            num_samples=body.n or 1,
            fields=body.service_fields,
            log=exchange_log,
            collect=_collected(body, turns, call.request_id, collector),
        )
        if body.stream:
            options = body.stream_options
            usage = options is not None and options.include_usage
            return await exchange.stream(backend, include_usage=usage)
        return await exchange.whole(backend)

    return routes


@dataclass(frozen=True, slots=True)
class _ChatExchange:
    """One request and how it is answered."""

    call: HttpCall
    model: str
    turns: tuple[Message, ...]
    sampling: SamplingParams
    num_samples: int
    fields: Callable[[int | None], Places]
    log: ExchangeLog | None
    collect: Callable[[tuple[str, ...]], None] | None
    """Hands in the prompt, given the weights that answered; None if it must not be kept."""

    async def whole(self, backend: Backend) -> Response:
        """Return the complete answers."""
        with caller_fields(self.fields):
            found = await backend.generate(self.turns, self.sampling, self.call, num_samples=self.num_samples)
        texts = [cut_at_stop(one.text, self.sampling.stop_strings) for one in found.completions]
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "finish_reason": _finish_reason(completion),
                "logprobs": None,
            }
            for index, (text, completion) in enumerate(zip(texts, found.completions, strict=True))
        ]
        self._record(list(zip(texts, found.completions, strict=True)))
        num_completion_tokens = sum(len(one.token_ids) for one in found.completions)
        return JSONResponse(
            {
                **self._head("chat.completion", found.completions[0]),
                "choices": choices,
                "usage": _usage(found.num_prompt_tokens, num_completion_tokens),
            }
        )

    async def stream(self, backend: Backend, *, include_usage: bool) -> Response:
        """Return the answers as a stream; an error before the first token is an ordinary error response."""
        pieces = backend.generate_stream(self.turns, self.sampling, self.call, num_samples=self.num_samples)
        with caller_fields(self.fields):
            first = await anext(pieces, None)
        if first is None:
            raise CorruptData("policy: the stream ended without an answer")
        return StreamingResponse(
            self._events(first, pieces, include_usage=include_usage),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    async def _events(
        self, first: GeneratedPiece, pieces: AsyncGenerator[GeneratedPiece, None], *, include_usage: bool
    ) -> AsyncIterator[str]:
        answers = [_StreamedAnswer(StopCutter(self.sampling.stop_strings)) for _ in range(self.num_samples)]
        head = self._head("chat.completion.chunk", first.delta)
        tail = {"usage": None} if include_usage else {}
        async with aclosing(pieces):
            try:
                for index in range(self.num_samples):
                    yield _event({**head, "choices": [_chunk(index, role="assistant", content="")], **tail})
                piece: GeneratedPiece | None = first
                while piece is not None:
                    answer = answers[piece.index]
                    text = answer.add(piece.delta)
                    if text:
                        yield _event({**head, "choices": [_chunk(piece.index, content=text)], **tail})
                    if piece.delta.finish_reason is not None:
                        reason = _finish_reason(piece.delta)
                        yield _event({**head, "choices": [_chunk(piece.index, reason)], **tail})
                    piece = await anext(pieces, None)
            except Exception as error:  # noqa: BLE001 - the edge of a stream that has started
                failure = failure_of(error, log_name=error_formats.LOG_NAME)
                self.call.stream_status = failure.status
                yield _event(error_formats.content("openai", failure, self.call.request_id))
                return
        self._record([(answer.text, answer.completion) for answer in answers])
        if include_usage:
            num_completion_tokens = sum(len(answer.completion.token_ids) for answer in answers)
            usage = _usage(first.num_prompt_tokens, num_completion_tokens)
            yield _event({**head, "choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    def _head(self, kind: str, completion: Completion) -> dict[str, Any]:
        spans = completion.version_spans
        return {
            "id": f"chatcmpl-{self.call.request_id}",
            "object": kind,
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": str(spans[0].version) if spans else "",
        }

    def _record(self, completions: list[tuple[str, Completion]]) -> None:
        if self.log is not None:
            self.log.add(self.call.request_id, self.turns, completions, self.sampling)
        if self.collect is not None:
            versions = (str(span.version) for _, one in completions for span in one.version_spans)
            self.collect(tuple(dict.fromkeys(versions)))


def _collected(
    body: ChatRequest, turns: tuple[Message, ...], request_id: str, collector: Collector | None
) -> Callable[[tuple[str, ...]], None] | None:
    if collector is None or not collector.wants(body.store):
        return None
    user, key, metadata = body.user or body.safety_identifier or "", caller().key_id, body.metadata or {}
    return lambda versions: collector.add(
        Exchange(
            turns=turns,
            user=user,
            key=key,
            request_id=request_id,
            weight_versions=versions,
            metadata=metadata,
        )
    )


class _StreamedAnswer:
    """The part of a streamed answer that has been generated so far."""

    def __init__(self, cutter: StopCutter) -> None:
        self._cutter = cutter
        self.text = ""
        self.completion = Completion((), (), None, ())

    def add(self, delta: Completion) -> str:
        """Append the next piece; return the text that can be sent now."""
        before = self.completion
        self.completion = dataclasses.replace(
            before,
            token_ids=before.token_ids + delta.token_ids,
            finish_reason=delta.finish_reason,
            version_spans=before.version_spans + delta.version_spans,
        )
        new = self._cutter.add(delta.text, last=delta.finish_reason is not None)
        self.text += new
        return new


class StopCutter:
    """Cuts an answer, given in pieces, at the first stop text.

    The policy service includes the stop text in the answer; OpenAI's clients do not expect it. Text that may
    be the start of a stop text is held back until the next piece.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """
        Args:
            stops: the stop texts; without any, pieces pass unchanged.
        """
        self._stops = tuple(stops)
        self._held = ""
        self._ended = False

    def add(self, piece: str, *, last: bool) -> str:
        """Append a piece; return the text that can be sent now.

        Args:
            piece: the next piece of the answer.
            last: whether the answer ends with it.
        """
        if self._ended:
            return ""
        self._held += piece
        # The stop text that is complete first counts, as in the policy; of several, the longest.
        found = [(begin + len(stop), begin) for stop in self._stops if (begin := self._held.find(stop)) >= 0]
        if found or last:
            self._ended = True
            return self._held[: min(found)[1]] if found else self._held
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        end = len(self._held) - keep
        out = self._held[:end]
        self._held = self._held[end:]
        return out

    def _overlap(self, stop: str) -> int:
        """Return the length of the longest proper prefix of a stop text that the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Return a whole answer up to the stop text that is complete first."""
    return StopCutter(stops).add(text, last=True)


def stop_field(name: str, given: Sequence[str], index: int | None) -> str:
    """Return the caller's name of a stop text, given its index among those that are not empty."""
    sent = [number for number, text in enumerate(given) if text]
    return name if index is None or index >= len(sent) else f"{name}[{sent[index]}]"


def _chunk(index: int, reason: str | None = None, **delta: str) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _finish_reason(completion: Completion) -> str:
    return completion.finish_reason.value if completion.finish_reason is not None else "stop"


def _usage(num_prompt_tokens: int, num_completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
    }
