"""What a caller is told when a request fails: one reading of every error, and each dialect's way to say it.

Statuses come from the one map in `fairlead/errors.py`. No text of an unexpected error leaves the process:
it gets an id, under which the log has it.
"""

from __future__ import annotations

import math
import re
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from fairlead.errors import FairleadError, InvalidInput, Unavailable
from services.gateway.call import call_of
from services.runtime.error_reply import error_reply

UNION_TAGS = ("as text", "as messages")
"""Names of alternatives in a body's model; they are no places in the body."""
_TOLD = "fairlead.told"
_RETRY_SECONDS = 1.0
_HTTP_KINDS = {404: "not_found", 405: "method_not_allowed", 413: "invalid_argument", 415: "invalid_argument"}


class TooLarge(InvalidInput):
    """A body beyond the limit; HTTP has a status for it, gRPC has none."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed, in no dialect yet."""

    status: int
    """HTTP."""
    kind: str
    """The gRPC status's name in small letters, such as `invalid_argument`: for programs."""
    message: str
    """For people."""
    field: str | None = None
    """Whose mistake it is, of a body or header."""
    index: int | None = None
    """In the field, if it is a list."""
    retry_after_seconds: float | None = None
    """When to try again, where that may help."""
    allow: str | None = None
    """Methods that a path has, when another was asked for."""

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, and in milliseconds, as OpenAI's clients read it."""
        seconds = self.retry_after_seconds
        if seconds is None:
            found = {"allow": self.allow} if self.allow else {}
            return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})
        return {
            "retry-after": str(max(1, math.ceil(seconds))),
            "retry-after-ms": str(max(1, round(seconds * 1000))),
        }


def failure_of(error: Exception) -> Failure:
    """What to say of an error; one that is not of our tree is logged and gets an id."""
    if isinstance(error, RequestValidationError):
        error = _invalid(error.errors())
    if isinstance(error, HTTPException):
        if isinstance(error.__cause__, FairleadError):
            error = error.__cause__
        else:
            kind = _HTTP_KINDS.get(error.status_code, "invalid_argument")
            allow = (error.headers or {}).get("Allow")
            return Failure(error.status_code, kind, str(error.detail), allow=allow)
    reply = error_reply(error, log_name="gateway")
    status, kind, message = reply.http_status, reply.code.name.lower(), _without_address(reply.message)
    if isinstance(error, InvalidInput):
        status = 413 if isinstance(error, TooLarge) else status
        return Failure(status, kind, message, field=error.field or None, index=error.index)
    delay = _RETRY_SECONDS if isinstance(error, Unavailable) else reply.retry_after_seconds
    return Failure(status, kind, message, retry_after_seconds=delay)


def _without_address(message: str) -> str:
    """Name the service that an error came from by its role, without its address."""
    return re.sub(r"^(reward|policy) at \S+: ", r"the \1 service: ", message)


def answer(error: Exception, *, path: str, request_id: str) -> JSONResponse:
    """The response to a request that failed, in the dialect of its path."""
    failure = failure_of(error)
    return JSONResponse(content(dialect(path), failure, request_id), failure.status, failure.headers)


def content(name: str, failure: Failure, request_id: str) -> dict[str, Any]:
    """What a dialect says of a failure."""
    return _CONTENT.get(name, _ours)(failure, request_id)


def dialect(path: str) -> str:
    """Whose way of speaking a path belongs to, for errors and metrics."""
    if path == "/v2" or path.startswith("/v2/"):
        return "open_inference"
    if path.startswith("/v1/rewards"):
        return "fairlead"
    return _DIALECTS.get(path, "other")


_DIALECTS = {
    "/get_reward": "openrlhf",
    "/classify": "vllm",
    "/v1/chat/completions": "openai",
    "/v1/models": "openai",
}


def install(app: FastAPI) -> None:
    """Has an app answer every error so."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        request.scope[_TOLD] = True
        return answer(error, path=request.scope["path"], request_id=call_of(request.scope).request_id)

    for kind in (FairleadError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)


def is_told(scope: MutableMapping[str, Any]) -> bool:
    """Whether the caller and the log have been told of the error of a request."""
    return _TOLD in scope


def _ours(failure: Failure, request_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "status": failure.status,
        "type": failure.kind,
        "message": failure.message,
        "field": failure.field,
        "index": failure.index,
        "retry_after_seconds": failure.retry_after_seconds,
        "request_id": request_id,
    }
    return {"error": {key: value for key, value in found.items() if value is not None}}


def _openai(failure: Failure, request_id: str) -> dict[str, Any]:
    """https://platform.openai.com/docs/guides/error-codes: what its clients read."""
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"}
    kind = kinds.get(failure.status, "rate_limit_error" if failure.status == 429 else failure.kind)
    return {
        "error": {
            "message": failure.message,
            "type": "invalid_request_error" if failure.status in (404, 405, 413) else kind,
            "param": failure.field,
            "code": failure.kind,
        }
    }


def _detail(failure: Failure, request_id: str) -> dict[str, Any]:
    return {"detail": failure.message}


def _open_inference(failure: Failure, request_id: str) -> dict[str, Any]:
    return {"error": failure.message}


_CONTENT = {"open_inference": _open_inference, "openrlhf": _detail, "vllm": _openai, "openai": _openai}


def _invalid(errors: Sequence[Any]) -> InvalidInput:
    """The first mistake that a model found in a body, its place as a program writes it: `items[3].prompt`."""
    first = max(errors, key=lambda one: len(one["loc"])) if errors else {"loc": (), "msg": "another body"}
    place = ""
    for part in first["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part not in UNION_TAGS and not (part == "body" and not place):
            place += f".{part}" if place else str(part)
    message = str(first["msg"]).removeprefix("Value error, ")
    got: object = first.get("input")
    if isinstance(got, dict):
        got = f"the keys {', '.join(map(str, got))}" if got else "no keys"
    elif isinstance(got, list):
        got = f"{len(got)} entries"
    return InvalidInput(place or "body", got=got, allowed=message)


class ErrorDetail(BaseModel):
    """Why a request failed."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: int
    """The HTTP status."""
    type: str
    """For programs: the gRPC status in small letters, such as `invalid_argument` or `resource_exhausted`."""
    message: str
    """For people: what was got, and what is allowed."""
    field: str | None = None
    """Where the mistake is: `items[3].response`, or a header."""
    index: int | None = None
    """Of the item that the reward model refused."""
    retry_after_seconds: float | None = None
    """When to try again, where that may help; also in the header Retry-After."""
    request_id: str
    """As in the header X-Request-Id."""


class Error(BaseModel):
    """What is sent in place of an answer."""

    error: ErrorDetail


_MEANINGS = {
    400: "A mistake of the caller; nothing was done.",
    401: "No API key, or one that is not valid.",
    403: "The API key does not allow this.",
    404: "Nothing of this name is served.",
    413: "The body is larger than gateway.max_body_bytes.",
    429: "No room now, or the key's allowance is used up; Retry-After says when to try again.",
    501: "The service behind this is not configured.",
    503: "The service behind the gateway does not answer, is loading or drains.",
    504: "Out of time.",
    500: "A bug; the message holds the id under which the log has it.",
}

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    **{status: {"model": Error, "description": meaning} for status, meaning in _MEANINGS.items()},
    "default": {"model": Error, "description": "Anything else that went wrong."},
}
"""For routes whose errors have our shape."""


def error_responses(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The same for a dialect whose errors have a shape of their own."""
    return {status: {**told, "model": model} for status, told in ERROR_RESPONSES.items()}
