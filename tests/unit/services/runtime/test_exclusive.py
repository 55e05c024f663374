"""A call that is to be alone passes the gate when nobody is inside, and nobody passes it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from fairlead.errors import Overloaded
from services.runtime import solitude
from services.runtime.exclusive import Gate


class World:
    """Calls that end when they are told to, and a count of those at work."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.running: set[str] = set()
        self.together: list[set[str]] = []

    def begin(self, name: str, *, exclusive: bool = False) -> tuple[asyncio.Task[str], asyncio.Event]:
        end = asyncio.Event()

        async def work() -> str:
            self.running.add(name)
            self.together.append(set(self.running))
            try:
                await end.wait()
            finally:
                self.running.discard(name)
            return name

        return asyncio.create_task(self.gate.through(work, exclusive=exclusive)), end

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - a condition with a deadline
                await asyncio.sleep(0.001)


async def test_calls_that_need_not_be_alone_run_together() -> None:
    world = World()
    begun = [world.begin(name) for name in "abc"]
    await world.until(lambda: world.running == set("abc"))
    for _, end in begun:
        end.set()
    assert await asyncio.gather(*(task for task, _ in begun)) == list("abc")


async def test_it_comes_back_until_the_others_have_ended_and_then_finds_its_place() -> None:
    world = World()
    first, first_end = world.begin("first")
    await world.until(lambda: world.running)
    refused, _ = world.begin("alone", exclusive=True)
    with pytest.raises(Overloaded):
        await refused
    late, late_end = world.begin("late")
    first_end.set()
    await first
    exclusive, alone_end = world.begin("alone", exclusive=True)
    await world.until(lambda: "alone" in world.running)
    with pytest.raises(Overloaded):
        await world.begin("second", exclusive=True)[0]
    assert world.running == {"alone"}
    alone_end.set()
    late_end.set()
    await asyncio.gather(exclusive, late)
    assert world.together == [{"first"}, {"alone"}, {"late"}]


async def test_a_place_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solitude, "_RESERVED_SECONDS", 0.05)
    world = World()
    first, end = world.begin("first")
    await world.until(lambda: world.running)
    with pytest.raises(Overloaded):
        await world.begin("alone", exclusive=True)[0]
    late, late_end = world.begin("late")
    await world.until(lambda: world.running == {"first", "late"})
    end.set()
    late_end.set()
    await asyncio.gather(first, late)


async def test_who_leaves_before_its_turn_or_in_its_midst_frees_the_place() -> None:
    world = World()
    exclusive, _ = world.begin("alone", exclusive=True)
    waits, _ = world.begin("waits")
    await world.until(lambda: world.running == {"alone"})
    next_one, end = world.begin("next")
    waits.cancel()
    exclusive.cancel()
    await world.until(lambda: world.running == {"next"})
    end.set()
    assert await next_one == "next"
    assert (await asyncio.gather(waits, exclusive, return_exceptions=True))[
        0
    ].__class__ is asyncio.CancelledError
