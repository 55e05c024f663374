"""Hedged calls: when another is asked, which answer counts, and what becomes of the other."""

from __future__ import annotations

import asyncio

import pytest

from fairlead.rpc.hedging import Hedging


def usual(seconds: float, *, factor: float = 4.0) -> Hedging:
    hedging = Hedging(factor)
    for _ in range(10):
        hedging.learn(seconds)
    return hedging


def test_late_is_so_many_times_the_usual_and_never_before_a_second():
    assert usual(0.5).late_seconds == pytest.approx(2.0)
    assert usual(0.01).late_seconds == 1.0
    assert usual(0.5, factor=0.0).late_seconds is None
    assert Hedging(4.0).late_seconds is None


def test_the_mean_follows_what_is_usual_now():
    hedging = usual(10.0)
    for _ in range(100):
        hedging.learn(1.0)
    assert hedging.late_seconds == pytest.approx(4.0, rel=0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Hedging:
    monkeypatch.setattr("fairlead.rpc.hedging._LEAST_SECONDS", 0.05)
    return usual(0.001)


async def fails(error: Exception) -> str:
    raise error


async def test_who_hangs_is_overtaken_and_let_go(quick: Hedging):
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


async def test_who_is_not_late_is_alone(quick: Hedging):
    asked = []
    assert await quick.first_of(asyncio.sleep(0, "first"), lambda: asked.append(1)) == "first"
    assert asked == []


async def test_an_error_counts_only_when_there_is_no_answer(quick: Hedging):
    async def late(result: str) -> str:
        await asyncio.sleep(0.2)
        return result

    assert await quick.first_of(late("first"), lambda: fails(ValueError("second"))) == "first"
    with pytest.raises(ValueError, match="at once"):
        await quick.first_of(fails(ValueError("at once")), lambda: late("never asked"))

    async def late_failure() -> str:
        await asyncio.sleep(0.2)
        raise ValueError("last")

    with pytest.raises(ValueError, match="last"):
        await quick.first_of(late_failure(), lambda: fails(ValueError("second")))


async def test_without_another_it_waits(quick: Hedging):
    async def late() -> str:
        await asyncio.sleep(0.2)
        return "first"

    assert await quick.first_of(late(), lambda: None) == "first"
