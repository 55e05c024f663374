"""What the OpenAPI page says of errors; `failures.py` is what says them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


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

ERRORS: dict[int | str, dict[str, Any]] = {
    **{status: {"model": Error, "description": meaning} for status, meaning in _MEANINGS.items()},
    "default": {"model": Error, "description": "Anything else that went wrong."},
}
"""For routes whose errors have our shape."""


def errors(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The same for a dialect whose errors have a shape of their own."""
    return {status: {**told, "model": model} for status, told in ERRORS.items()}
