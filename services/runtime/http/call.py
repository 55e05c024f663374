"""One HTTP request as the routes see it: its id, deadline and credentials."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from fairlead.errors import DeadlineExceeded, InvalidInput
from fairlead.rpc.status import REQUEST_ID, TRACEPARENT
from services.runtime.access.control import request_id_or_new

TIMEOUT_HEADER = "x-request-timeout"
"""Seconds until the caller stops waiting. The service's own timeout applies if it is shorter."""

_KEY = "fairlead.call"


@dataclass(slots=True)
class HttpCall:
    """One request."""

    request_id: str
    """The id that the caller sent, or a random one."""
    started: float
    """When the headers were read, on the clock of `time.monotonic`."""
    deadline: float
    """When the caller stops waiting, on the same clock."""
    authorization: str | None = field(default=None, repr=False)
    """The value of the header Authorization, or that of X-API-Key in its form."""
    timeout: bytes | None = None
    """The value of the header X-Request-Timeout, as received."""
    traceparent: str | None = None
    """The value of the header traceparent, as received."""
    stream_status: int | None = None
    """HTTP status of the error that ended a response after its start; None if there was none."""

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]], *, timeout_seconds: float) -> HttpCall:
        """Read the headers of a request.

        Args:
            headers: with names in lower case.
            timeout_seconds: the service's own timeout.
        """
        found = {name: value for name, value in headers if name in _READ}
        name = found.get(REQUEST_ID.encode(), b"").decode("latin-1")
        call = cls(request_id_or_new(name), time.monotonic(), math.inf)
        call.deadline = call.started + timeout_seconds
        shown, key = found.get(b"authorization"), found.get(_API_KEY)
        if shown is None and key is not None:
            shown = b"Bearer " + key
        call.authorization = None if shown is None else shown.decode("latin-1")
        call.timeout = found.get(TIMEOUT_HEADER.encode())
        traceparent = found.get(TRACEPARENT.encode())
        call.traceparent = None if traceparent is None else traceparent.decode("latin-1")
        return call

    def apply_timeout(self) -> None:
        """Shorten the deadline to what the caller asks for.

        Raises:
            InvalidInput: X-Request-Timeout is not a positive number.
        """
        if self.timeout is not None:
            self.deadline = min(self.deadline, self.started + _seconds(self.timeout))

    def remaining(self) -> float:
        """Return the seconds until the deadline.

        Raises:
            DeadlineExceeded: the deadline has passed.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the work was started")
        return left

    def store_in(self, scope: MutableMapping[str, Any]) -> None:
        """Store the call in the ASGI scope, where the handlers of the request find it."""
        scope[_KEY] = self


_API_KEY = b"x-api-key"
_READ = {TIMEOUT_HEADER.encode(), REQUEST_ID.encode(), b"authorization", _API_KEY, TRACEPARENT.encode()}


def _seconds(value: bytes) -> float:
    text = value.decode("latin-1").strip()
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidInput("X-Request-Timeout", got=text, allowed="a number of seconds greater than 0")
    return seconds


def call_of(scope: MutableMapping[str, Any]) -> HttpCall:
    """Return the call that `store_in` stored in an ASGI scope."""
    found = scope[_KEY]
    assert isinstance(found, HttpCall)
    return found


def _of_request(request: Request) -> HttpCall:
    return call_of(request.scope)


CurrentCall = Annotated[HttpCall, Depends(_of_request)]
"""Type of a handler's parameter that receives the call."""
