"""Access control of a service: identify the caller, check what its key allows, and count its use.

Sits between the edge of a server, gRPC or HTTP, and its work. The work gets the current caller from
`caller()`. Knows nothing about messages.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal

from fairlead import metrics
from fairlead.backoff import Backoff, retry
from fairlead.config.infrastructure import KeysSection
from fairlead.errors import InvalidInput, Overloaded, PermissionDenied
from fairlead.rpc.api_keys import ApiKey, Scope
from fairlead.rpc.status import MAX_REQUEST_TOKENS
from fairlead.types import Priority
from services.runtime.access.allowance import Allowance
from services.runtime.access.keys import KeyRing

Need = Scope | Literal["any"] | None
"""What a call requires: a key with this scope, any key, or no key."""

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_IN_FLIGHT_RETRY_SECONDS = 0.1
_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=1.0)
"""Pauses of a stream's request over its key's rate, if the error has no retry delay."""


@dataclass(slots=True, eq=False)
class Caller:
    """The caller of the current request, and what has been counted for the request so far."""

    request_id: str
    """Identifies the request in logs."""
    key: ApiKey | None = None
    """API key of the caller; None if the service requires no keys."""
    allowance: Allowance | None = None
    """Remaining rates and quotas of all keys."""
    max_request_tokens: int | None = None
    """Per-request token limit set by the sender, in addition to the key's own limit; None means no limit."""
    ring: KeyRing | None = None
    """Key ring that the key is from."""
    num_tokens: int = 0
    """Tokens counted so far."""

    @property
    def key_id(self) -> str:
        """Id of the key, for logs; empty without a key."""
        return self.key.id if self.key is not None else ""

    def part(self, request_id: str) -> Caller:
        """Return the caller of one request of several in an RPC; a new id replaces one that is not valid."""
        return replace(self, request_id=request_id_or_new(request_id), num_tokens=0)

    async def admit(self, *, tokens: int, waits: bool = False, deadline: float | None = None) -> None:
        """Count the tokens of a request before any work is done for it.

        Args:
            tokens: tokens of the request.
            waits: the request is part of a stream: check its key again, count it as a request, and wait until
                the rate allows it instead of refusing it.
            deadline: limit of that wait, on the clock of `time.monotonic`; None for no limit.

        Raises:
            Overloaded: if the key's rate or quota does not allow it now; has the delay until it does.
            InvalidInput: if it exceeds what the key, or the sender, allows in one request.
            Unauthenticated: if the key of a stream is no longer valid.
        """
        limit = self.max_request_tokens
        if limit is not None and tokens > limit:
            raise InvalidInput("request", got=f"{tokens} tokens", allowed=f"at most {limit} in one request")
        if self.key is not None and self.allowance is not None:
            key = self.key
            allowance = self.allowance
            if waits and self.ring is not None:
                self.ring.check(key)
            if waits:
                await retry(
                    lambda: allowance.admit(key, requests=1, tokens=tokens),
                    what="",
                    backoff=_BACKOFF,
                    on=Overloaded,
                    deadline=deadline,
                )
            else:
                await allowance.admit(key, requests=0, tokens=tokens)
        self.num_tokens += tokens

    async def charge(self, *, tokens: int) -> None:
        """Count tokens known only after the work, even beyond the limits; a negative number is a refund."""
        if self.key is not None and self.allowance is not None:
            await self.allowance.charge(self.key, tokens=tokens)
        self.num_tokens += tokens

    def priority(self, wanted: Priority) -> Priority:
        """Return the requested priority, lowered to what the key allows."""
        return Priority.BULK if self.key is not None and self.key.max_priority == "bulk" else wanted

    def exclusive(self, wanted: bool) -> bool:
        """Return whether the request is exclusive; since it blocks all others, its key needs `generate`.

        Raises:
            PermissionDenied: if the key does not have the scope.
        """
        if wanted and self.key is not None:
            self.key.require("generate")
        return wanted


_CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def caller() -> Caller:
    """Return the caller of the current request; outside a request, a caller without a key."""
    return _CALLER.get() or Caller(request_id="")


class AccessControl:
    """Authenticates callers, checks scopes, and limits requests in flight."""

    def __init__(self, section: KeysSection, *, access_metrics: metrics.AccessMetrics) -> None:
        """
        Raises:
            ConfigError: if the file of keys cannot be read.
        """
        self._metrics = access_metrics
        self._ring = KeyRing(section, access_metrics=access_metrics) if section.file else None
        self._allowance = Allowance(section, access_metrics=access_metrics) if section.file else None
        self._in_flight: Counter[str] = Counter()
        access_metrics.set_quotas(self._quotas)

    @property
    def requires_keys(self) -> bool:
        """Whether callers need an API key."""
        return self._ring is not None

    def _quotas(self) -> dict[str, tuple[int, int]]:
        """Return the tokens used today and the quota of each key that has one, by its id."""
        if self._ring is None or self._allowance is None:
            return {}
        return {key: (self._allowance.used_today(key), limit) for key, limit in self._ring.quotas.items()}

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._allowance is not None:
            await self._allowance.close()

    def count_tokens(self, caller: Caller) -> None:
        """Count the tokens of a caller's request, which has ended."""
        self._metrics.count_tokens(caller.num_tokens, caller.key_id)

    def authorize(self, caller: Caller, *, bearer: str | None, scope: Need) -> None:
        """Authenticate the caller, check its scope, and make it the result of `caller()`.

        Args:
            caller: receives its key and allowance.
            bearer: value of `authorization`; None if it was not sent.
            scope: what the call requires.

        Raises:
            Unauthenticated: if the key is missing or invalid.
            PermissionDenied: if the key does not have the scope.
        """
        _CALLER.set(caller)
        if self._ring is None or scope is None:
            return
        caller.key = self._ring.authenticate(bearer)
        caller.allowance = self._allowance
        caller.ring = self._ring
        if scope == "any":
            return
        try:
            caller.key.require(scope)
        except PermissionDenied:
            self._metrics.refuse("scope", caller.key.id)
            raise

    @asynccontextmanager
    async def request(self, caller: Caller, *, requests: int = 1) -> AsyncIterator[None]:
        """Count a request of a caller while it is in flight.

        Args:
            caller: the caller.
            requests: 0 for a stream, whose requests are counted one by one.

        Raises:
            Overloaded: if the key has too many requests in flight or exceeds its rate.
        """
        key = caller.key
        if key is None or self._allowance is None:
            yield
            return
        if key.max_in_flight is not None and self._in_flight[key.id] >= key.max_in_flight:
            self._metrics.refuse("in_flight", key.id)
            raise Overloaded(
                f"the API key {key.id} has reached its limit of {key.max_in_flight} requests in flight",
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

    @asynccontextmanager
    async def part(self, part: Caller, *, is_counted: bool) -> AsyncIterator[None]:
        """Make a part of an RPC's caller the result of `caller()`, and count its request while in flight.

        Args:
            part: the caller of one request of the RPC, from `Caller.part`.
            is_counted: whether the RPC itself counts as this request.

        Raises:
            Overloaded: as `request`.
        """
        _CALLER.set(part)
        if is_counted:
            yield
            return
        async with self.request(part):
            yield


_METHODS: dict[str, tuple[Scope, tuple[str, ...]]] = {
    "fairlead.v1.RewardService": ("score", ("Score", "ScoreStream", "GetRewardInfo")),
    "fairlead.v1.ReferenceService": ("score", ("LogProbs", "GetReferenceInfo")),
    "fairlead.v1.PolicyService": (
        "generate",
        ("Generate", "GenerateBatch", "GenerateStream", "GetPolicyInfo"),
    ),
    "fairlead.v1.WeightService": (
        "weights",
        ("GetLatestManifest", "ListWeightVersions", "FindWeightSource", "FetchShard"),
    ),
    "inference.GRPCInferenceService": (
        "score",
        (
            "ServerMetadata",
            "ModelMetadata",
            "ModelConfig",
            "ModelInfer",
            "ModelStreamInfer",
            "ModelStatistics",
            "RepositoryIndex",
        ),
    ),
}
_OPEN = frozenset(
    f"/inference.GRPCInferenceService/{method}" for method in ("ServerLive", "ServerReady", "ModelReady")
)
"""Health checks. `grpc.health.v1` is open too, but its calls do not pass the edge."""

_SCOPES: dict[str, Scope | None] = {
    f"/{service}/{method}": scope for service, (scope, methods) in _METHODS.items() for method in methods
} | dict.fromkeys(_OPEN)


def scope_of(method: str) -> Scope | None:
    """Return the scope that an RPC requires, `admin` if it is not listed here; None if it requires no key.

    Args:
        method: full name, such as `/fairlead.v1.RewardService/Score`.
    """
    return _SCOPES.get(method, "admin")


def request_id_or_new(given: str | None) -> str:
    """Return the request id that the caller sent, or a new one if it sent none or an invalid one."""
    return given if given and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def parse_token_limit(given: str | None) -> int | None:
    """Return the per-request token limit that the sender set; None if it set none.

    Raises:
        InvalidInput: if it is not a positive whole number.
    """
    if given is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,17}", given):
        raise InvalidInput(MAX_REQUEST_TOKENS, got=given, allowed="a whole number of tokens, 1 or more")
    return int(given)
