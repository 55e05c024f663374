"""The gate of a service: who calls, whether it may, how much of it, and under which id it stands in the log.

Between the edge of a server, gRPC or HTTP, and its work. What works asks `caller()`; it knows no message.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from fairlead import metrics
from fairlead.config.infrastructure import KeysSection
from fairlead.errors import InvalidInput, Overloaded, PermissionDenied
from fairlead.rpc.api_keys import ApiKey, Scope
from fairlead.rpc.status import MAX_REQUEST_TOKENS
from fairlead.types import Priority
from services.runtime.allowance import Allowance
from services.runtime.keys import KeyRing
from services.runtime.streams import patiently

Need = Scope | Literal["any"] | None
"""What a caller must show: a key with this scope, any key, or nothing."""

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_IN_FLIGHT_RETRY_SECONDS = 0.1


@dataclass(slots=True, eq=False)
class Caller:
    """Who sent the request at hand, and what of it was counted so far."""

    request_id: str
    """Names the request in logs."""
    key: ApiKey | None = None
    """What it showed; None where no keys are asked for."""
    allowance: Allowance | None = None
    """What its key has left."""
    max_request_tokens: int | None = None
    """Tokens of one request that who sent it allows, beside what its key does; None: all."""
    ring: KeyRing | None = None
    """Where its key is from."""
    num_tokens: int = 0
    """Tokens that were counted."""

    @property
    def key_id(self) -> str:
        """For logs; empty where no keys are asked for."""
        return self.key.id if self.key is not None else ""

    async def admit(self, *, tokens: int, waits: bool = False, deadline: float | None = None) -> None:
        """Counts what a request holds, once that is known and before it is worked on.

        Args:
            tokens: of the request.
            waits: it is one of a stream: its key is looked at again, and it is counted as a request, too, and
                late rather than refused.
            deadline: until when it waits, on the clock of `time.monotonic`; None for ever.

        Raises:
            Overloaded: if it is more than the key may have now; says when it may.
            InvalidInput: if it is more than the key may ever have at once, or than its sender allows.
            Unauthenticated: if the key of a stream is no longer good.
        """
        most = self.max_request_tokens
        if most is not None and tokens > most:
            raise InvalidInput("request", got=f"{tokens} tokens", allowed=f"at most {most} in one request")
        if self.key is not None and self.allowance is not None:
            key, allowance = self.key, self.allowance
            if waits and self.ring is not None:
                self.ring.check(key)
            if waits:
                await patiently(lambda: allowance.admit(key, requests=1, tokens=tokens), deadline=deadline)
            else:
                await allowance.admit(key, requests=0, tokens=tokens)
        self.num_tokens += tokens

    async def charge(self, *, tokens: int) -> None:
        """Counts tokens that came out of the work; what the key has not left it owes. Fewer than none gives
        back.
        """
        if self.key is not None and self.allowance is not None:
            await self.allowance.charge(self.key, tokens=tokens)
        self.num_tokens += tokens

    def priority(self, wanted: Priority) -> Priority:
        """What a request asks for, as far as its key allows it."""
        return Priority.BULK if self.key is not None and self.key.max_priority == "bulk" else wanted

    def exclusive(self, wanted: bool) -> bool:
        """What a request asks for. It holds all others back, so its key needs `generate`, as a worker's has.

        Raises:
            PermissionDenied: if the key may not.
        """
        if wanted and self.key is not None:
            self.key.require("generate")
        return wanted


_CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def caller() -> Caller:
    """Who sent the request that is worked on; somebody without a key outside of one."""
    return _CALLER.get() or Caller(request_id="")


class Access:
    """Lets callers in."""

    def __init__(self, section: KeysSection, *, counts: metrics.AccessMetrics) -> None:
        """
        Raises:
            ConfigError: for a file of keys that cannot be read.
        """
        self._counts = counts
        self._ring = KeyRing(section, counts=counts) if section.file else None
        self._allowance = Allowance(section, counts=counts) if section.file else None
        self._in_flight: Counter[str] = Counter()

    @property
    def asks_for_keys(self) -> bool:
        """Whether callers must show a key."""
        return self._ring is not None

    async def close(self) -> None:
        """Closes the connections to Redis."""
        if self._allowance is not None:
            await self._allowance.close()

    def identify(self, caller: Caller, *, bearer: str | None, scope: Need) -> None:
        """Finds out who calls, and whether it may; from now on `caller()` answers with it.

        Args:
            caller: gets its key and what that has left.
            bearer: the value of `authorization`; None if there is none.
            scope: what the call needs.

        Raises:
            Unauthenticated: for no key or a wrong one.
            PermissionDenied: for a key without the scope.
        """
        _CALLER.set(caller)
        if self._ring is None or scope is None:
            return
        caller.key = self._ring.authenticate(bearer)
        caller.allowance, caller.ring = self._allowance, self._ring
        if scope == "any":
            return
        try:
            caller.key.require(scope)
        except PermissionDenied:
            self._counts.refusals.labels(reason="scope").inc()
            raise

    @asynccontextmanager
    async def working(self, caller: Caller, *, requests: int = 1) -> AsyncIterator[None]:
        """For the length of a request: counts it.

        Args:
            caller: who sent it.
            requests: 0 if what it brings is counted one by one, as in a stream.

        Raises:
            Overloaded: if the key has too many in flight, or sends them too fast.
        """
        key = caller.key
        if key is None or self._allowance is None:
            yield
            return
        if key.max_in_flight is not None and self._in_flight[key.id] >= key.max_in_flight:
            self._counts.refusals.labels(reason="in_flight").inc()
            raise Overloaded(
                f"the API key {key.id} has {key.max_in_flight} requests in flight, as many as it may",
                retry_after_seconds=_IN_FLIGHT_RETRY_SECONDS,
            )
        self._in_flight[key.id] += 1
        try:
            await self._allowance.admit(key, requests=requests, tokens=0)
            yield
        finally:
            self._in_flight[key.id] -= 1
            if not self._in_flight[key.id]:
                del self._in_flight[key.id]


def checked_request_id(given: str | None) -> str:
    """The id that a caller gave, or a new one in the place of none or of what is no id."""
    return given if given and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def checked_limit(given: str | None) -> int | None:
    """The tokens that one request may hold; None where nothing is said.

    Raises:
        InvalidInput: for what is no number of tokens.
    """
    if given is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,17}", given):
        raise InvalidInput(MAX_REQUEST_TOKENS, got=given, allowed="a whole number of tokens, 1 or more")
    return int(given)
