"""The gate starts an exclusive call only when nothing is running, and starts nothing while it runs."""

from __future__ import annotations

import asyncio

import pytest

from fairlead.errors import Overloaded
from services.runtime import exclusive as exclusive_module
from services.runtime.exclusive import ExclusiveGate
from tests.waiting import until


class World:
    """Starts calls that run until their event is set, and records which calls ran together."""

    def __init__(self) -> None:
        self.gate = ExclusiveGate()
        self.running: set[str] = set()
        self.together: list[set[str]] = []

    def start(self, name: str, *, exclusive: bool = False) -> tuple[asyncio.Task[str], asyncio.Event]:
        end = asyncio.Event()

        async def work() -> str:
            self.running.add(name)
            self.together.append(set(self.running))
            try:
                await end.wait()
            finally:
                self.running.discard(name)
            return name

        return asyncio.create_task(self.gate.run(work, exclusive=exclusive)), end


async def test_shared_calls_run_together() -> None:
    world = World()
    started = [world.start(name) for name in "abc"]
    await until(lambda: world.running == set("abc"))
    for _, end in started:
        end.set()
    assert await asyncio.gather(*(task for task, _ in started)) == list("abc")


async def test_refused_exclusive_call_runs_exclusively_on_retry() -> None:
    world = World()
    first, first_end = world.start("first")
    await until(lambda: world.running)
    refused, _ = world.start("exclusive", exclusive=True)
    with pytest.raises(Overloaded, match="exclusive request refused: other requests are still running"):
        await refused
    late, late_end = world.start("late")
    first_end.set()
    await first
    exclusive, exclusive_end = world.start("exclusive", exclusive=True)
    await until(lambda: "exclusive" in world.running)
    with pytest.raises(Overloaded):
        await world.start("second", exclusive=True)[0]
    assert world.running == {"exclusive"}
    exclusive_end.set()
    late_end.set()
    await asyncio.gather(exclusive, late)
    assert world.together == [{"first"}, {"exclusive"}, {"late"}]


async def test_reservation_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive_module, "_RESERVED_SECONDS", 0.05)
    world = World()
    first, end = world.start("first")
    await until(lambda: world.running)
    with pytest.raises(Overloaded):
        await world.start("exclusive", exclusive=True)[0]
    late, late_end = world.start("late")
    await until(lambda: world.running == {"first", "late"})
    end.set()
    late_end.set()
    await asyncio.gather(first, late)


async def test_cancelled_call_frees_the_gate() -> None:
    """Whether it is cancelled while waiting or while running."""
    world = World()
    exclusive, _ = world.start("exclusive", exclusive=True)
    waits, _ = world.start("waits")
    await until(lambda: world.running == {"exclusive"})
    next_one, end = world.start("next")
    waits.cancel()
    exclusive.cancel()
    await until(lambda: world.running == {"next"})
    end.set()
    assert await next_one == "next"
    results = await asyncio.gather(waits, exclusive, return_exceptions=True)
    assert results[0].__class__ is asyncio.CancelledError
