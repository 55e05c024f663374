"""Hedged calls: when a second call is made, which result counts, and that the other is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from fairlead.rpc.hedging import Hedging


def with_mean(seconds: float, *, factor: float = 4.0) -> Hedging:
    hedging = Hedging(factor)
    for _ in range(10):
        hedging.record(seconds)
    return hedging


def test_call_is_late_after_factor_times_mean_and_at_least_one_second():
    assert with_mean(0.5).late_seconds == pytest.approx(2.0)
    assert with_mean(0.01).late_seconds == 1.0
    assert with_mean(0.5, factor=0.0).late_seconds is None
    assert Hedging(4.0).late_seconds is None


def test_mean_follows_recent_calls():
    hedging = with_mean(10.0)
    for _ in range(100):
        hedging.record(1.0)
    assert hedging.late_seconds == pytest.approx(4.0, rel=0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Hedging:
    monkeypatch.setattr("fairlead.rpc.hedging._MIN_SECONDS", 0.05)
    return with_mean(0.001)


async def fails(error: Exception) -> str:
    raise error


async def test_call_that_hangs_is_hedged_and_cancelled(quick: Hedging):
    ended = asyncio.Event()

    async def hangs() -> str:
        try:
            await asyncio.sleep(3_600)
        finally:
            ended.set()
        return "late"

    async def second() -> str:
        return "second"

    assert await asyncio.wait_for(quick.first_of(hangs(), second), 10) == "second"
    assert ended.is_set()


async def test_call_in_time_is_not_hedged(quick: Hedging):
    calls = []
    assert await quick.first_of(asyncio.sleep(0, "first"), lambda: calls.append(1)) == "first"
    assert calls == []


async def test_error_is_raised_only_if_no_call_succeeds(quick: Hedging):
    async def late(result: str) -> str:
        await asyncio.sleep(0.2)
        return result

    won = []
    first = quick.first_of(late("first"), lambda: fails(ValueError("second")), on_won=lambda: won.append(1))
    assert await first == "first"
    assert won == []
    with pytest.raises(ValueError, match="at once"):
        await quick.first_of(fails(ValueError("at once")), lambda: late("not called"))

    async def late_failure() -> str:
        await asyncio.sleep(0.2)
        raise ValueError("last")

    with pytest.raises(ValueError, match="last"):
        await quick.first_of(late_failure(), lambda: fails(ValueError("second")))


async def test_single_replica_returns_the_result_of_the_first_call(quick: Hedging):
    async def late() -> str:
        await asyncio.sleep(0.2)
        return "first"

    assert await quick.first_of(late(), lambda: None) == "first"
