"""Rates and quotas, counted in the process and in Redis, compared with a replay by hand."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from fairlead import metrics
from fairlead.config.infrastructure import KeysSection
from fairlead.errors import ConfigError, InvalidInput, Overloaded
from fairlead.local import valkey
from fairlead.local.valkey import ValkeyServer
from fairlead.rpc.api_keys import ApiKey
from services.runtime.access.allowance import Allowance, _Account, _rates, _source
from tests.metric_values import total

MIDNIGHT = 20_000 * 86_400.0


class Clock:
    def __init__(self, now: float = MIDNIGHT + 3_600) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def key(key_id: str = "one", **limits: object) -> ApiKey:
    return ApiKey(id=key_id, sha256="0" * 64, scopes=("score",), **limits)


def counting(clock: Clock | None = None, **section: object) -> tuple[Allowance, CollectorRegistry]:
    registry = CollectorRegistry()
    access_metrics = metrics.AccessMetrics(registry)
    return Allowance(KeysSection(**section), access_metrics=access_metrics, clock=clock or Clock()), registry


async def refused(allowance: Allowance, api_key: ApiKey, *, requests: int = 0, tokens: int = 0) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        await allowance.admit(api_key, requests=requests, tokens=tokens)
    return caught.value


async def test_request_rate_is_enforced_with_exact_delay():
    clock = Clock()
    allowance, registry = counting(clock)
    api_key = key(requests_per_second=4)
    for _ in range(4):
        await allowance.admit(api_key, requests=1, tokens=0)
    error = await refused(allowance, api_key, requests=1)
    assert error.retry_after_seconds == pytest.approx(0.25)
    assert "one exceeds its rate of 4 requests per second" in str(error)
    clock.now += error.retry_after_seconds - 0.01
    await refused(allowance, api_key, requests=1)
    clock.now += 0.01
    await allowance.admit(api_key, requests=1, tokens=0)
    await refused(allowance, api_key, requests=1)
    assert total(registry, "fairlead_access_refusals_total", reason="requests") == 3


async def test_rate_below_one_per_second_allows_one_request():
    clock = Clock()
    allowance, _ = counting(clock)
    api_key = key(requests_per_second=0.1)
    await allowance.admit(api_key, requests=1, tokens=0)
    assert (await refused(allowance, api_key, requests=1)).retry_after_seconds == pytest.approx(10)


async def test_full_bucket_accepts_larger_request_and_goes_into_debt():
    clock = Clock()
    allowance, _ = counting(clock)
    api_key = key(tokens_per_minute=600)
    await allowance.admit(api_key, requests=1, tokens=3_000)
    # A debt of 2400 plus 1 requested, at 10 per second.
    assert (await refused(allowance, api_key, tokens=1)).retry_after_seconds == pytest.approx(240.1)
    # A key in debt starts no new request, even if the tokens of the request are not known yet.
    assert (await refused(allowance, api_key, requests=1)).retry_after_seconds == pytest.approx(240)
    clock.now += 241
    await allowance.admit(api_key, requests=1, tokens=10)


async def test_tokens_charged_after_the_work_become_debt():
    clock = Clock()
    allowance, _ = counting(clock)
    api_key = key(tokens_per_minute=60, tokens_per_day=1_000)
    await allowance.admit(api_key, requests=1, tokens=0)
    await allowance.charge(api_key, tokens=90)
    assert (await refused(allowance, api_key, requests=1)).retry_after_seconds == pytest.approx(30)


async def test_quota_resets_at_midnight():
    clock = Clock(MIDNIGHT - 100)
    allowance, registry = counting(clock)
    api_key = key(tokens_per_day=100)
    await allowance.admit(api_key, requests=1, tokens=60)
    error = await refused(allowance, api_key, tokens=41)
    assert error.retry_after_seconds == pytest.approx(100)
    assert total(registry, "fairlead_access_refusals_total", reason="quota") == 1
    # A refused request is not counted.
    await allowance.admit(api_key, requests=1, tokens=40)
    await refused(allowance, api_key, requests=1)
    clock.now = MIDNIGHT
    await allowance.admit(api_key, requests=1, tokens=100)


async def test_request_above_key_limit_is_invalid_input():
    allowance, _ = counting()
    with pytest.raises(InvalidInput, match="101 tokens', allowed: at most 100 a day for the API key one"):
        await allowance.admit(key(tokens_per_day=100), requests=1, tokens=101)
    with pytest.raises(InvalidInput, match="at most 50 in one request"):
        await allowance.admit(key(max_request_tokens=50), requests=1, tokens=51)


async def test_keys_are_counted_separately_and_unlimited_keys_not_at_all():
    allowance, _ = counting()
    await allowance.admit(key("one", requests_per_second=1), requests=1, tokens=0)
    await allowance.admit(key("two", requests_per_second=1), requests=1, tokens=0)
    for _ in range(100):
        await allowance.admit(key("three"), requests=1, tokens=10**6)
    assert set(allowance._accounts) == {"one", "two"}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ValkeyServer]:
    with valkey.running(tmp_path_factory.mktemp("valkey")) as started:
        yield started


async def test_redis_script_counts_like_the_process(server: ValkeyServer):
    """Random requests at random times: the script, with an injected time, compared with `_Account.take`."""
    draw = random.Random(0)
    # The script's clock is replaced in its source, so that both use the same time.
    source = _source().replace("redis.call('TIME')", "{ARGV[8], '0'}")
    assert source != _source()
    async with Redis.from_url(server.url) as client:
        script = client.register_script(source)
        passed = 0
        for number in range(40):
            api_key = key(
                f"k{number}",
                requests_per_second=draw.choice([None, 0.5, 3]),
                tokens_per_minute=draw.choice([None, 60, 6_000]),
                tokens_per_day=draw.choice([None, 20_000]),
            )
            rates = _rates(api_key)
            now = MIDNIGHT - draw.choice([5, 50_000])
            account = _Account(max(1.0, rates[0]), rates[2], now, int(now // 86_400), 0)
            for _ in range(25):
                now += draw.choice([0, 1, 7, 300])
                requests, tokens = draw.choice([0, 1]), draw.choice([0, 5, 500, 7_000])
                force = draw.random() < 0.2
                expected = account.take(api_key, requests=requests, tokens=tokens, now=now, force=force)
                which, wait, *levels = await script(
                    keys=[f"test:{api_key.id}"], args=[requests, tokens, *rates, int(force), now]
                )
                assert which.decode() == expected[0]
                assert float(wait) == pytest.approx(expected[1], abs=1e-3)
                if not which:
                    kept = [account.requests, account.tokens, account.used]
                    assert list(map(float, levels)) == pytest.approx(kept, abs=1e-3)
                passed += which == b""
        assert 200 < passed < 900


async def test_replicas_share_limits_through_redis(server: ValkeyServer):
    first, _ = counting(redis_url=server.url)
    second, _ = counting(redis_url=server.url)
    api_key = key("shared", requests_per_second=0.01, tokens_per_minute=60)
    try:
        await first.admit(api_key, requests=1, tokens=60)
        requests, tokens = first.buckets(api_key)
        assert (requests.level, tokens.level) == pytest.approx((0, 0), abs=0.1)
        error = await refused(second, api_key, requests=1)
        assert second.buckets(api_key)[1].level == pytest.approx(0, abs=5)
        assert error.retry_after_seconds == pytest.approx(100, abs=5)
        await second.charge(api_key, tokens=30)
        assert (await refused(first, api_key, tokens=60)).retry_after_seconds == pytest.approx(90, abs=5)
    finally:
        await first.close()
        await second.close()
    async with Redis.from_url(server.url) as client:
        assert 0 < await client.ttl("fairlead:keys:shared") <= 172_800


async def test_replica_counts_on_its_own_while_redis_is_unavailable(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    prepared = valkey.prepare(tmp_path)
    allowance, registry = counting(redis_url=prepared.url)
    api_key = key(requests_per_second=0.001)
    try:
        await allowance.admit(api_key, requests=1, tokens=0)
        await refused(allowance, api_key, requests=1)
        # Logged once, regardless of the number of requests, and without the password.
        [message] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert "counts its own requests" in message
        assert prepared.url.partition(":")[2].partition("@")[0] not in message
        assert registry.get_sample_value("fairlead_access_redis_failures_total") == 1
        with valkey.start(prepared):
            allowance._unavailable_until = -math.inf
            await allowance.admit(api_key, requests=1, tokens=0)
            await refused(allowance, api_key, requests=1)
        assert any("is available again" in message for message in caplog.messages)
    finally:
        await allowance.close()


def test_invalid_redis_url_is_refused_without_quoting_it():
    with pytest.raises(ConfigError) as caught:
        Allowance(
            KeysSection.model_construct(redis_url="http://:secret@host"),
            access_metrics=metrics.AccessMetrics(CollectorRegistry()),
        )
    assert "keys.redis_url" in str(caught.value)
    assert "secret" not in str(caught.value)
