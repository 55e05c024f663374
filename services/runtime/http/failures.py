"""An error as HTTP reports it: status, headers, the place of a mistake in the body, and Fairlead's JSON.

`services/runtime/error_reply.py` reads the error: status, message without internals, retry delay. A service
that has other formats of errors makes them from `Failure`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from fairlead.errors import FairleadError, InvalidInput, Unavailable
from services.runtime.error_reply import error_reply
from services.runtime.http.call import call_of
from services.runtime.http.paths import path_of

logger = logging.getLogger(__name__)

_FIELD_CHARACTERS = 80
_SHOWN_KEYS = 16
_REPORTED = "fairlead.error_reported"
_UNAVAILABLE_RETRY_SECONDS = 1.0
_HTTP_KINDS = {404: "not_found", 405: "method_not_allowed", 413: "invalid_argument", 415: "invalid_argument"}


class TooLarge(InvalidInput):
    """A body beyond the limit. HTTP has a status for it, gRPC has none."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed, independent of the format of the response."""

    status: int
    """HTTP status."""
    kind: str
    """Name of the gRPC status in lower case, such as `invalid_argument`; for programs."""
    message: str
    """One sentence for people."""
    field: str | None = None
    """The field of the body, or the header, that is invalid, such as `items[3].prompt`."""
    is_too_long: bool = False
    """Whether a text has more tokens than the model's context."""
    retry_after_seconds: float | None = None
    """Delay before the next attempt, if one may succeed."""
    allow: str | None = None
    """Methods that the path supports, if the request used another one."""

    @property
    def index(self) -> int | None:
        """The first index in the field."""
        found = re.search(r"\[(\d+)\]", self.field or "")
        return int(found[1]) if found is not None else None

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response: Retry-After in seconds, and in milliseconds for OpenAI's clients."""
        seconds = self.retry_after_seconds
        if seconds is None:
            found = {"allow": self.allow} if self.allow else {}
            return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})
        return {
            "retry-after": str(max(1, math.ceil(seconds))),
            "retry-after-ms": str(max(1, round(seconds * 1000))),
        }


def failure_of(error: Exception, *, log_name: str, path: str = "") -> Failure:
    """Read an error. An internal one is logged under an id, which is part of the message.

    Args:
        error: from the app, from FastAPI or from the edge.
        log_name: the service whose log has the details of an internal error, such as `gateway`.
        path: of the request, for the log.
    """
    if isinstance(error, RequestValidationError):
        error = invalid_input(error.errors())
    if isinstance(error, HTTPException):
        if isinstance(error.__cause__, FairleadError):
            error = error.__cause__
        else:
            kind = _HTTP_KINDS.get(error.status_code, "invalid_argument")
            allow = (error.headers or {}).get("Allow")
            return Failure(error.status_code, kind, str(error.detail), allow=allow)
    reply = error_reply(error, log_name=log_name, where=path)
    kind = reply.code.name.lower()
    message = _without_addresses(reply.message)
    if isinstance(error, InvalidInput):
        status = 413 if isinstance(error, TooLarge) else reply.http_status
        return Failure(status, kind, message, field=error.where or None, is_too_long=_is_too_long(error))
    delay = _UNAVAILABLE_RETRY_SECONDS if isinstance(error, Unavailable) else reply.retry_after_seconds
    return Failure(reply.http_status, kind, message, retry_after_seconds=delay)


def with_path(failure: Failure, path: str) -> Failure:
    """Return a failure that names the path, where the message is only "Not Found" or "Method Not Allowed"."""
    shown = path if len(path) <= _FIELD_CHARACTERS else f"{path[:_FIELD_CHARACTERS]}…"
    if failure.message == "Not Found":
        return replace(failure, message=f"there is no path {shown}; /docs lists the paths")
    if failure.message == "Method Not Allowed":
        return replace(failure, message=f"{shown} does not have this method, allowed: {failure.allow}")
    return failure


def _is_too_long(error: InvalidInput) -> bool:
    """Return whether a text exceeds the model's context, in the words of services/runtime/limits.py."""
    got, allowed = str(error.got).strip("'"), str(error.allowed)
    return bool(re.fullmatch(r"\d+ tokens", got) and re.match(r"at most \d+ tokens\b", allowed))


def _without_addresses(message: str) -> str:
    """Remove the address of a service from an error message: callers of the gateway must not see it."""
    return re.sub(r"^(reward|policy) at \S+: ", r"the \1 service: ", message)


Respond = Callable[[Exception, str, str], Response]
"""Returns the response to an error, from the error, the path without its prefix, and the request id."""


def install(app: FastAPI, respond: Respond) -> None:
    """Make an app answer every error with `respond`."""

    async def handle(request: Request, error: Exception) -> Response:
        request.scope[_REPORTED] = True
        return respond(error, path_of(request.scope), call_of(request.scope).request_id)

    for kind in (FairleadError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)


def is_reported(scope: MutableMapping[str, Any]) -> bool:
    """Return whether the error of a request has been sent to the caller and logged."""
    return _REPORTED in scope


def error_content(failure: Failure, request_id: str) -> dict[str, Any]:
    """Return the JSON body of a failure in Fairlead's own format, that of `Error`."""
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


def invalid_input(errors: Sequence[Any], body: object = None) -> InvalidInput:
    """Return the most specific validation error, with its path as a program writes it: `items[3].prompt`.

    Args:
        errors: those of pydantic, as dictionaries.
        body: the JSON that was validated, if it is at hand.
    """
    if not errors:
        return InvalidInput("body", got="nothing", allowed="a valid body")
    places = [_place(one, body) for one in errors]
    place, first = max(zip(places, errors, strict=True), key=lambda pair: len(pair[0]))
    where = ""
    for part in place:
        if isinstance(part, int):
            where += f"[{part}]"
        else:
            where += f".{part}"[:_FIELD_CHARACTERS] if where else part[:_FIELD_CHARACTERS]
    got: object = first.get("input")
    if first["type"] == "missing" and not place:
        got = "nothing"
    elif isinstance(got, dict):
        names = [str(key)[:_FIELD_CHARACTERS] for key in islice(got, _SHOWN_KEYS)]
        got = f"the keys {', '.join(names)}" if names else "no keys"
    elif isinstance(got, list):
        got = f"{len(got)} entries"
    return InvalidInput(where or "body", got=got, allowed=_allowed(first, place, body))


def _allowed(error: Any, place: Sequence[str | int], body: object) -> str:  # noqa: ANN401 - pydantic's dictionary
    """Return what a validation error allows, in the words of JSON in place of pydantic's."""
    kind = error["type"]
    if kind == "missing":
        if not place:
            return "a JSON object"
        return "a value" if body is None else f"an object with the key `{place[-1]}`"
    if kind == "extra_forbidden":
        return "no such key; /docs lists the keys"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "a JSON object"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "too_short":
        number = error["ctx"]["min_length"]
        return f"at least {number} {'entry' if number == 1 else 'entries'}"
    return message


def _place(error: Any, body: object) -> list[str | int]:  # noqa: ANN401 - pydantic's dictionary
    """Return the part of an error's location that the caller sent, or left out.

    Pydantic adds the names of types, of which a value had the choice: `content.list[TextPart].0.type`.
    """
    if body is None and error["loc"] and error["loc"][0] in ("query", "header", "path"):
        return list(error["loc"][1:2])
    place: list[str | int] = []
    value: Any = body
    for part in error["loc"]:
        inside = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if inside or (isinstance(value, dict) and part in value):
            value = value[part]
            place.append(part)
    return [*place, error["loc"][-1]] if error["type"] == "missing" and body is not None else place


class ErrorDetail(BaseModel):
    """Why a request failed."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: int
    """HTTP status."""
    type: str
    """For programs: the gRPC status in lower case, such as `invalid_argument` or `resource_exhausted`."""
    message: str
    """For people: what is wrong, what was received and what is allowed."""
    field: str | None = None
    """Path of the invalid field, such as `items[3].response`, or name of the invalid header."""
    index: int | None = None
    """The first index in `field`."""
    retry_after_seconds: float | None = None
    """Delay before the next attempt, if one may succeed; also in the header Retry-After."""
    request_id: str
    """Id of the request, as in the header X-Request-Id."""


class Error(BaseModel):
    """Response to a request that failed."""

    error: ErrorDetail


_MEANINGS = {
    400: "The request is invalid; nothing was done.",
    401: "No API key was sent, or it is not valid.",
    403: "The API key does not allow this request.",
    404: "There is no model with this name or version.",
    413: "The body is larger than `max_body_bytes` of the service's section.",
    429: "The service is overloaded, or the API key's limit is reached. Retry-After says when to try again.",
    501: "The service that this request needs is not configured.",
    503: "The service that this request needs is unreachable, loading or draining.",
    504: "The deadline passed.",
    500: "Internal error. The message contains the id under which the log has the details.",
}

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    **{status: {"model": Error, "description": meaning} for status, meaning in _MEANINGS.items()},
    "default": {"model": Error, "description": "Any other error."},
}
"""OpenAPI description of the errors of routes that use Fairlead's own format."""


def error_responses(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return the same for a dialect whose errors have the format of `model`."""
    return {status: {**described, "model": model} for status, described in ERROR_RESPONSES.items()}
