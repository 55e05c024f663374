"""One HTTP request as the dialects see it: its name, and until when its caller waits."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from fairlead.errors import DeadlineExceeded, InvalidInput
from fairlead.rpc.status import REQUEST_ID
from services.runtime.access import checked_request_id

TIMEOUT_HEADER = "x-request-timeout"
"""Seconds that the caller waits; more than the gateway's own deadline has no effect."""

_KEY = "fairlead.call"


@dataclass(slots=True)
class HttpCall:
    """One request."""

    request_id: str
    """The caller's name for it, or a random one."""
    started: float
    """On the clock of `time.monotonic`."""
    deadline: float
    """On the same clock."""
    authorization: str | None = field(default=None, repr=False)
    """What the caller shows, as it stands in the header."""

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]], *, timeout_seconds: float) -> HttpCall:
        """What the headers say.

        Raises:
            InvalidInput: for a timeout that is no number of seconds.
        """
        found = {name: value for name, value in headers if name in _READ}
        name = found.get(REQUEST_ID.encode(), b"").decode("latin-1")
        call = cls(checked_request_id(name), time.monotonic(), math.inf)
        call.deadline = call.started + timeout_seconds
        shown = found.get(b"authorization")
        call.authorization = None if shown is None else shown.decode("latin-1")
        wanted = found.get(TIMEOUT_HEADER.encode())
        if wanted is not None:
            call.deadline = min(call.deadline, call.started + _seconds(wanted))
        return call

    def remaining(self) -> float:
        """Seconds left.

        Raises:
            DeadlineExceeded: there are none.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the work was started")
        return left

    def store_in(self, scope: MutableMapping[str, Any]) -> None:
        """Lets the handlers of the request find it."""
        scope[_KEY] = self


_READ = {TIMEOUT_HEADER.encode(), REQUEST_ID.encode(), b"authorization"}


def _seconds(value: bytes) -> float:
    text = value.decode("latin-1").strip()
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidInput("X-Request-Timeout", got=text, allowed="seconds, more than 0")
    return seconds


def call_of(scope: MutableMapping[str, Any]) -> HttpCall:
    """The call that was put into a scope."""
    found = scope[_KEY]
    assert isinstance(found, HttpCall)
    return found


def _of_request(request: Request) -> HttpCall:
    return call_of(request.scope)


CurrentCall = Annotated[HttpCall, Depends(_of_request)]
"""A parameter of a handler."""
