"""OpenAI's `POST /v1/chat/completions` on the policy: whole answers, or as they are made."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fairlead.errors import CorruptData
from fairlead.types import Completion, GeneratedPiece, Message, SamplingParams
from services.gateway import failures
from services.gateway.backend import Backend
from services.gateway.body import JsonRoute
from services.gateway.call import CurrentCall, HttpCall
from services.gateway.dialects.chat_bodies import ChatRequest, ChatResponse
from services.gateway.dialects.openai_models import OpenAiError, check_model
from services.gateway.dialects.stop_texts import StopCutter, cut
from services.gateway.exchange_log import ExchangeLog
from services.gateway.failures import error_responses

_STREAMED = {
    "description": "An answer; with `stream`, chunks of it as server-sent events, and `[DONE]` at the end.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def router(backend: Backend, *, log: ExchangeLog | None, default_tokens: int) -> APIRouter:
    """The route.

    Args:
        backend: what answers.
        log: where exchanges are kept, if they are.
        default_tokens: of an answer at most, where the caller does not say.
    """
    routes = APIRouter(
        tags=["OpenAI"], route_class=JsonRoute, responses={200: _STREAMED, **error_responses(OpenAiError)}
    )

    @routes.post("/v1/chat/completions", response_model=ChatResponse, summary="Answer a conversation")
    async def chat(body: ChatRequest, call: CurrentCall) -> Response:
        """The policy's answer to the last turn."""
        check_model(body.model, backend.policy)
        exchange = _Exchange(
            call,
            model=backend.policy_model,
            turns=body.turns(),
            sampling=body.sampling(default_tokens=default_tokens),
            num_samples=body.n or 1,
            log=log,
        )
        if body.stream:
            options = body.stream_options
            usage = options is not None and options.include_usage
            return await exchange.stream(backend, include_usage=usage)
        return await exchange.whole(backend)

    return routes


@dataclass(frozen=True, slots=True)
class _Exchange:
    """One request on its way to its answer."""

    call: HttpCall
    model: str
    turns: tuple[Message, ...]
    sampling: SamplingParams
    num_samples: int
    log: ExchangeLog | None

    async def whole(self, backend: Backend) -> Response:
        """The answer when it is complete."""
        found = await backend.generate(self.turns, self.sampling, self.call, num_samples=self.num_samples)
        texts = [cut(one.text, self.sampling.stop_strings) for one in found.completions]
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "finish_reason": _reason(completion),
                "logprobs": None,
            }
            for index, (text, completion) in enumerate(zip(texts, found.completions, strict=True))
        ]
        self._keep(list(zip(texts, found.completions, strict=True)))
        made = sum(len(one.token_ids) for one in found.completions)
        return JSONResponse(
            {
                **self._head("chat.completion", found.completions[0]),
                "choices": choices,
                "usage": _usage(found.num_prompt_tokens, made),
            }
        )

    async def stream(self, backend: Backend, *, include_usage: bool) -> Response:
        """The answer as it is made; what fails before its first token is an error like any other."""
        pieces = backend.generate_stream(self.turns, self.sampling, self.call, num_samples=self.num_samples)
        first = await anext(pieces, None)
        if first is None:
            raise CorruptData("policy: a stream without an answer")
        return StreamingResponse(
            self._events(first, pieces, include_usage=include_usage),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    async def _events(
        self, first: GeneratedPiece, pieces: AsyncGenerator[GeneratedPiece, None], *, include_usage: bool
    ) -> AsyncIterator[str]:
        answers = [_Growing(StopCutter(self.sampling.stop_strings)) for _ in range(self.num_samples)]
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
                        reason = _reason(piece.delta)
                        yield _event({**head, "choices": [_chunk(piece.index, reason)], **tail})
                    piece = await anext(pieces, None)
            except Exception as error:  # noqa: BLE001 - the edge of a stream that has begun
                failure = failures.failure_of(error)
                yield _event(failures.content("openai", failure, self.call.request_id))
                return
        self._keep([(answer.text, answer.completion) for answer in answers])
        if include_usage:
            made = sum(len(answer.completion.token_ids) for answer in answers)
            yield _event({**head, "choices": [], "usage": _usage(first.num_prompt_tokens, made)})
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

    def _keep(self, completions: list[tuple[str, Completion]]) -> None:
        if self.log is not None:
            self.log.add(self.call.request_id, self.turns, completions, self.sampling)


class _Growing:
    """One answer of a stream."""

    def __init__(self, cutter: StopCutter) -> None:
        self._cutter = cutter
        self.text = ""
        self.completion = Completion((), (), None, ())

    def add(self, delta: Completion) -> str:
        """Takes the next piece; gives what of the text can be handed on."""
        mine = self.completion
        self.completion = dataclasses.replace(
            mine,
            token_ids=mine.token_ids + delta.token_ids,
            finish_reason=delta.finish_reason,
            version_spans=mine.version_spans + delta.version_spans,
        )
        new = self._cutter.add(delta.text, last=delta.finish_reason is not None)
        self.text += new
        return new


def _chunk(index: int, reason: str | None = None, **delta: str) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _reason(completion: Completion) -> str:
    return completion.finish_reason.value if completion.finish_reason is not None else "stop"


def _usage(prompt: int, made: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
