"""Rate limits and quotas of API keys: token buckets for requests and tokens, and a daily quota of tokens.

Used between the edge of a service and its work. Counts in this process, or by a script in Redis for all
replicas together. Knows the id and the limits of a key, but no secrets.

A bucket fills at its rate up to its capacity. A full bucket accepts a request larger than its capacity and
goes into debt, so that the average rate holds and no request waits forever.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import cast

import redis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from fairlead import metrics
from fairlead.config.infrastructure import REDIS_URLS, KeysSection
from fairlead.errors import ConfigError, InvalidInput, Overloaded
from fairlead.rpc.api_keys import ApiKey
from fairlead.transports.rollouts.redis_connection import keepalive_options, tls_options

logger = logging.getLogger(__name__)

_DAY_SECONDS = 86_400
_REDIS_TIMEOUT_SECONDS = 0.5
"""Timeout of a call to Redis, after which Redis counts as unavailable."""
_UNAVAILABLE_SECONDS = 1.0
"""Pause after Redis was unavailable; during it, only this process counts."""
_TOLERANCE = 1e-6
"""Tolerance of a bucket level, so that rounding does not refuse a request."""

_REASONS = {
    "requests": "exceeds its rate of {key.requests_per_second:g} requests per second",
    "tokens": "exceeds its rate of {key.tokens_per_minute} tokens per minute",
    "quota": "has used its quota of {key.tokens_per_day} tokens for today (UTC)",
}


@dataclass(slots=True)
class _Account:
    """Bucket levels and used quota of one key."""

    requests: float
    tokens: float
    at: float
    day: int
    used: int

    def take(self, key: ApiKey, *, requests: int, tokens: int, now: float, force: bool) -> tuple[str, float]:
        """Take requests and tokens, all or nothing; the script in `allowance.lua` does the same.

        Args:
            key: the limits.
            requests: number of requests.
            tokens: number of tokens.
            now: seconds since 1970.
            force: take them even beyond the limits.

        Returns:
            The limit that refuses it, empty if none does, and the seconds until it would be accepted.
        """
        request_rate, token_rate, capacity, quota = _rates(key)
        request_capacity = max(1.0, request_rate)
        elapsed = max(0.0, now - self.at)
        today = int(now // _DAY_SECONDS)
        used = self.used if self.day == today else 0
        request_level = min(request_capacity, self.requests + elapsed * request_rate)
        token_level = min(capacity, self.tokens + elapsed * token_rate)
        if not force:
            short = min(requests, request_capacity) - request_level
            if request_rate and short > _TOLERANCE:
                return "requests", short / request_rate
            short = min(tokens, capacity) - token_level
            if token_rate and short > _TOLERANCE:
                return "tokens", short / token_rate
            if quota and (used >= quota or used + tokens > quota):
                return "quota", (today + 1) * _DAY_SECONDS - now
        self.requests = request_level - requests if request_rate else request_level
        self.tokens = token_level - tokens if token_rate else token_level
        self.at, self.day, self.used = now, today, used + tokens
        return "", 0.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a key has left of one of its rates."""

    rate: float
    """Requests or tokens that are added every second."""
    capacity: float
    """The most that it holds."""
    level: float
    """What it holds now; negative if the key is in debt."""


class Allowance:
    """Remaining rates and quotas of all keys."""

    def __init__(
        self,
        section: KeysSection,
        *,
        access_metrics: metrics.AccessMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            section: settings of Redis, if it counts.
            access_metrics: metrics of refusals.
            clock: returns seconds since 1970; used for counts in this process.

        Raises:
            ConfigError: if the URL of Redis is invalid.
        """
        self._metrics = access_metrics
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._reported: dict[str, tuple[float, float, float]] = {}
        """Levels of requests and tokens that Redis reported last for a key, and when."""
        self._used: dict[str, tuple[int, int]] = {}
        """Day and tokens used of a key, as last counted."""
        self._redis = _client(section) if section.redis_url else None
        self._script = self._redis.register_script(_source()) if self._redis else None
        self._unavailable_until = 0.0
        self._was_unavailable = False

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._redis is not None:
            await self._redis.aclose()

    async def admit(self, key: ApiKey, *, requests: int, tokens: int) -> None:
        """Count requests and tokens against the limits of a key, all or nothing.

        Args:
            key: key of the caller.
            requests: number of requests.
            tokens: tokens of the requests.

        Raises:
            Overloaded: if they exceed a rate or the quota now; has the delay until they do not.
            InvalidInput: if they exceed what the key allows in one request.
        """
        if key.max_request_tokens is not None and tokens > key.max_request_tokens:
            raise self._too_large(key, tokens, f"at most {key.max_request_tokens} in one request")
        if key.tokens_per_day is not None and tokens > key.tokens_per_day:
            raise self._too_large(key, tokens, f"at most {key.tokens_per_day} a day")
        which, wait = await self._take(key, requests=requests, tokens=tokens, force=False)
        if which:
            self._metrics.refuse(which, key.id)
            what = _REASONS[which].format(key=key)
            raise Overloaded(f"the API key {key.id} {what}", retry_after_seconds=max(0.001, round(wait, 3)))

    async def charge(self, key: ApiKey, *, tokens: int) -> None:
        """Count tokens known only after the work, even beyond the limits; the debt delays later requests.

        A negative number refunds tokens that were counted beforehand.
        """
        await self._take(key, requests=0, tokens=tokens, force=True)

    def buckets(self, key: ApiKey) -> tuple[Bucket | None, Bucket | None]:
        """Return the buckets of requests and of tokens of a key as last counted; None without a rate."""
        request_rate, token_rate, capacity, _ = _rates(key)
        account = self._accounts.get(key.id)
        levels = (account.requests, account.tokens, account.at) if account is not None else None
        requests, tokens, at = self._reported.get(key.id) or levels or (math.inf, math.inf, 0.0)
        elapsed = max(0.0, self._clock() - at)
        return (
            _bucket(request_rate, max(1.0, request_rate), requests, elapsed),
            _bucket(token_rate, capacity, tokens, elapsed),
        )

    def used_today(self, key_id: str) -> int:
        """Return the tokens of today (UTC) that count against the quota of a key, as last counted."""
        day, used = self._used.get(key_id, (0, 0))
        return used if day == int(self._clock() // _DAY_SECONDS) else 0

    def _too_large(self, key: ApiKey, tokens: int, allowed: str) -> InvalidInput:
        self._metrics.refuse("request_tokens", key.id)
        return InvalidInput("request", got=f"{tokens} tokens", allowed=f"{allowed} for the API key {key.id}")

    async def _take(self, key: ApiKey, *, requests: int, tokens: int, force: bool) -> tuple[str, float]:
        rates = _rates(key)
        # Return early if no limit applies, as for most calls of most keys.
        if not ((requests and rates[0]) or rates[1] or rates[3]):
            return "", 0.0
        if self._script is not None and time.monotonic() >= self._unavailable_until:
            arguments = [requests, tokens, *rates, int(force)]
            try:
                which, wait, request_level, token_level, used = cast(
                    tuple[bytes, bytes, bytes, bytes, bytes],
                    await self._script(keys=[f"fairlead:keys:{key.id}"], args=arguments),
                )
            except (redis.RedisError, OSError) as error:
                self._redis_failed(error)
            else:
                self._redis_answered()
                now = self._clock()
                self._reported[key.id] = (float(request_level), float(token_level), now)
                self._used[key.id] = (int(now // _DAY_SECONDS), int(float(used)))
                return which.decode(), float(wait)
        self._reported.pop(key.id, None)
        now = self._clock()
        account = self._accounts.get(key.id)
        if account is None:
            account = _Account(max(1.0, rates[0]), rates[2], now, int(now // _DAY_SECONDS), 0)
            self._accounts[key.id] = account
        found = account.take(key, requests=requests, tokens=tokens, now=now, force=force)
        self._used[key.id] = (account.day, account.used)
        return found

    def _redis_failed(self, error: Exception) -> None:
        """Continue with counts of this process: serving is more important than exact limits."""
        self._metrics.redis_failures.inc()
        self._unavailable_until = time.monotonic() + _UNAVAILABLE_SECONDS
        if not self._was_unavailable:
            what = (str(error) or type(error).__name__).splitlines()[0]
            logger.error("Redis of [keys] is unavailable (%s): this replica counts its own requests", what)
        self._was_unavailable = True

    def _redis_answered(self) -> None:
        if self._was_unavailable:
            logger.info("Redis of [keys] is available again")
        self._was_unavailable = False


def _rates(key: ApiKey) -> tuple[float, float, float, int]:
    """Return requests a second, tokens a second, capacity of the token bucket, tokens a day; 0 means no
    limit.
    """
    per_minute = key.tokens_per_minute or 0
    return key.requests_per_second or 0.0, per_minute / 60, float(per_minute), key.tokens_per_day or 0


def _bucket(rate: float, capacity: float, level: float, elapsed: float) -> Bucket | None:
    return Bucket(rate, capacity, min(capacity, level + elapsed * rate)) if rate else None


def _client(section: KeysSection) -> Redis:
    password = section.redis_password
    try:
        return Redis.from_url(
            section.redis_url,
            password=password.get_secret_value() if password else None,
            socket_timeout=_REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=_REDIS_TIMEOUT_SECONDS,
            **keepalive_options(section),
            retry=Retry(NoBackoff(), 0),
            **tls_options(section, name="keys"),
        )
    except ValueError:
        # Not quoted: it may hold a password.
        raise ConfigError(
            "keys.redis_url",
            got="an invalid URL",
            allowed=REDIS_URLS,
        ) from None


def _source() -> str:
    return (resources.files(__package__) / "allowance.lua").read_text(encoding="utf-8")
