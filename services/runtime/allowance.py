"""How much a key may still take: token buckets of requests and tokens, and a quota for each day.

Between the edge of a service and its work. Counted in this process, or by a script in Redis for all replicas
together. It knows keys by their limits and their id, and no secrets.

A bucket fills at its rate up to its capacity. A request that is larger than the capacity is let through by a
full bucket and leaves a debt, so that the average holds and nothing waits for ever.
"""

from __future__ import annotations

import logging
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
from fairlead.config.infrastructure import KeysSection
from fairlead.errors import ConfigError, InvalidInput, Overloaded
from fairlead.rpc.api_keys import ApiKey
from fairlead.transports.rollouts.redis_connection import tls_options

logger = logging.getLogger(__name__)

_DAY_SECONDS = 86_400
_REDIS_SECONDS = 0.5
"""Redis answers in this time or counts as away."""
_AWAY_SECONDS = 1.0
"""How long Redis is left alone once it was away; until then this process counts by itself."""
_ENOUGH = 1e-6
"""A bucket that lacks less than this is not short: rounding alone must not refuse."""

_WHICH = {
    "requests": "sends more than {key.requests_per_second:g} requests a second",
    "tokens": "sends more than {key.tokens_per_minute} tokens a minute",
    "quota": "has used its {key.tokens_per_day} tokens of this day (UTC)",
}


@dataclass(slots=True)
class _Account:
    """What one key has left."""

    requests: float
    tokens: float
    at: float
    day: int
    used: int

    def take(
        self, key: ApiKey, *, requests: int, tokens: int, now: float, whatever: bool
    ) -> tuple[str, float]:
        """Takes all or nothing; the script in `allowance.lua` does the same.

        Args:
            key: the limits.
            requests: how many.
            tokens: how many.
            now: seconds since 1970.
            whatever: take also what is not there.

        Returns:
            Which limit forbids it, empty if none does, and after how many seconds it would not.
        """
        request_rate, token_rate, capacity, quota = _rates(key)
        request_capacity = max(1.0, request_rate)
        elapsed = max(0.0, now - self.at)
        today = int(now // _DAY_SECONDS)
        used = self.used if self.day == today else 0
        request_level = min(request_capacity, self.requests + elapsed * request_rate)
        token_level = min(capacity, self.tokens + elapsed * token_rate)
        if not whatever:
            short = min(requests, request_capacity) - request_level
            if request_rate and short > _ENOUGH:
                return "requests", short / request_rate
            short = min(tokens, capacity) - token_level
            if token_rate and short > _ENOUGH:
                return "tokens", short / token_rate
            if quota and (used >= quota or used + tokens > quota):
                return "quota", (today + 1) * _DAY_SECONDS - now
        self.requests = request_level - requests if request_rate else request_level
        self.tokens = token_level - tokens if token_rate else token_level
        self.at, self.day, self.used = now, today, used + tokens
        return "", 0.0


class Allowance:
    """What every key has left."""

    def __init__(
        self, section: KeysSection, *, counts: metrics.AccessMetrics, clock: Callable[[], float] = time.time
    ) -> None:
        """
        Args:
            section: where Redis is, if it counts.
            counts: where refusals are counted.
            clock: seconds since 1970, for what this process counts by itself.

        Raises:
            ConfigError: for a URL that is none of Redis.
        """
        self._counts = counts
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._redis = _client(section) if section.redis_url else None
        self._script = self._redis.register_script(_source()) if self._redis else None
        self._away_until = 0.0
        self._was_away = False

    async def close(self) -> None:
        """Closes the connections to Redis."""
        if self._redis is not None:
            await self._redis.aclose()

    async def admit(self, key: ApiKey, *, requests: int, tokens: int) -> None:
        """Takes requests and tokens out of what a key may have; all or nothing.

        Args:
            key: whose they are.
            requests: how many begin.
            tokens: how many they hold.

        Raises:
            Overloaded: if it is more than the key may have now; says when it may.
            InvalidInput: if it is more than the key may ever have at once.
        """
        if key.max_request_tokens is not None and tokens > key.max_request_tokens:
            raise self._too_large(key, tokens, f"at most {key.max_request_tokens} in one request")
        if key.tokens_per_day is not None and tokens > key.tokens_per_day:
            raise self._too_large(key, tokens, f"at most {key.tokens_per_day} a day")
        which, wait = await self._take(key, requests=requests, tokens=tokens, whatever=False)
        if which:
            self._counts.refusals.labels(reason=which).inc()
            what = _WHICH[which].format(key=key)
            raise Overloaded(f"the API key {key.id} {what}", retry_after_seconds=max(0.001, round(wait, 3)))

    async def charge(self, key: ApiKey, *, tokens: int) -> None:
        """Takes tokens that were only known when the work was done; what is not there is owed.

        Fewer than none gives back what was taken beforehand.
        """
        await self._take(key, requests=0, tokens=tokens, whatever=True)

    def _too_large(self, key: ApiKey, tokens: int, allowed: str) -> InvalidInput:
        self._counts.refusals.labels(reason="request_tokens").inc()
        return InvalidInput("request", got=f"{tokens} tokens", allowed=f"{allowed} for the API key {key.id}")

    async def _take(self, key: ApiKey, *, requests: int, tokens: int, whatever: bool) -> tuple[str, float]:
        rates = _rates(key)
        # The limits that this would touch; most calls of most keys touch none.
        if not ((requests and rates[0]) or rates[1] or rates[3]):
            return "", 0.0
        if self._script is not None and time.monotonic() >= self._away_until:
            arguments = [requests, tokens, *rates, int(whatever)]
            try:
                which, wait = cast(
                    tuple[bytes, bytes],
                    await self._script(keys=[f"fairlead:keys:{key.id}"], args=arguments),
                )
            except (redis.RedisError, OSError) as error:
                self._redis_failed(error)
            else:
                self._redis_answered()
                return which.decode(), float(wait)
        now = self._clock()
        account = self._accounts.get(key.id)
        if account is None:
            account = _Account(max(1.0, rates[0]), rates[2], now, int(now // _DAY_SECONDS), 0)
            self._accounts[key.id] = account
        return account.take(key, requests=requests, tokens=tokens, now=now, whatever=whatever)

    def _redis_failed(self, error: Exception) -> None:
        """Scoring goes on without Redis, every replica by its own count: a limit is less than a service."""
        self._counts.redis_failures.inc()
        self._away_until = time.monotonic() + _AWAY_SECONDS
        if not self._was_away:
            what = (str(error) or type(error).__name__).splitlines()[0]
            logger.error("Redis of [keys] does not count (%s): this replica counts by itself", what)
        self._was_away = True

    def _redis_answered(self) -> None:
        if self._was_away:
            logger.info("Redis of [keys] counts again")
        self._was_away = False


def _rates(key: ApiKey) -> tuple[float, float, float, int]:
    """Requests a second, tokens a second, capacity of the token bucket, tokens a day; 0 is no limit."""
    per_minute = key.tokens_per_minute or 0
    return key.requests_per_second or 0.0, per_minute / 60, float(per_minute), key.tokens_per_day or 0


def _client(section: KeysSection) -> Redis:
    password = section.redis_password
    try:
        return Redis.from_url(
            section.redis_url,
            password=password.get_secret_value() if password else None,
            socket_timeout=_REDIS_SECONDS,
            socket_connect_timeout=_REDIS_SECONDS,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
            **tls_options(section, name="keys"),
        )
    except ValueError:
        # Not quoted: it may hold a password.
        raise ConfigError(
            "keys.redis_url",
            got="another URL",
            allowed="redis://host:port, rediss://host:port or unix://path",
        ) from None


def _source() -> str:
    return (resources.files(__package__) / "allowance.lua").read_text(encoding="utf-8")
