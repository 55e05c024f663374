"""The gate starts an exclusive call only when nothing is running, and starts nothing while it runs."""

from __future__ import annotations

import asyncio

from services.runtime.exclusive import ExclusiveGate
from tests.waiting import until


class World:
    """Starts calls that run until their event is set, and records which calls ran together."""

    def __init__(self) -> None:
        self.gate = ExclusiveGate()
        self.running: set[str] = set()
        self.together: list[set[str]] = []
        self.announced: list[str] = []

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

        def announce() -> None:
            self.announced.append(name)

        return asyncio.create_task(self.gate.run(work, exclusive=exclusive, on_start=announce)), end


async def test_shared_calls_run_together() -> None:
    world = World()
    started = [world.start(name) for name in "abc"]
    await until(lambda: world.running == set("abc"))
    for _, end in started:
        end.set()
    assert await asyncio.gather(*(task for task, _ in started)) == list("abc")


async def test_exclusive_calls_wait_for_their_turn_and_announce_it() -> None:
    world = World()
    first, first_end = world.start("first")
    await until(lambda: world.running)
    exclusive, exclusive_end = world.start("exclusive", exclusive=True)
    late, late_end = world.start("late")
    second, second_end = world.start("second", exclusive=True)
    for end in (late_end, second_end):
        end.set()
    await asyncio.sleep(0)
    assert world.running == {"first"}
    assert world.announced == []
    first_end.set()
    await until(lambda: "exclusive" in world.running)
    assert world.announced == ["exclusive"]
    exclusive_end.set()
    await asyncio.gather(first, exclusive, late, second)
    assert world.together == [{"first"}, {"exclusive"}, {"late"}, {"second"}]
    assert world.announced == ["exclusive", "second"]


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
