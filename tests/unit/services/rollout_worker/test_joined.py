"""Joined calls answer every item as it would have been answered alone, and nobody pays for another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from fairlead.errors import InternalError, InvalidInput, Overloaded, ReplicaLost, Unavailable
from services.rollout_worker import joined, solo
from services.rollout_worker.joined import CALLS_AT_ONCE, MAX_ITEMS, MAX_TOKENS, JoinedCalls


class Service:
    """Squares numbers once its gate is open; knows how it was called."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = asyncio.Event()
        self.errors: dict[int, Exception] = {}
        self.running = 0
        self.exclusive: list[list[int]] = []
        self.poison: set[int] = set()
        self.refusals: list[Exception] = []

    async def call(self, items: Sequence[int], *, exclusive: bool) -> list[int]:
        (self.exclusive if exclusive else self.calls).append(list(items))
        if exclusive and self.refusals:
            raise self.refusals.pop(0)
        if self.poison & set(items):
            raise ReplicaLost("Socket closed")
        self.running += 1
        try:
            await self.gate.wait()
            for item in items:
                if item in self.errors:
                    raise self.errors[item]
        finally:
            self.running -= 1
        return [item * item for item in items]

    async def until_running(self, number: int) -> None:
        async with asyncio.timeout(5):
            while self.running < number:  # noqa: ASYNC110 - a condition with a deadline
                await asyncio.sleep(0)


async def test_what_arrives_while_calls_are_under_way_goes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "LONGEST_WAIT_SECONDS", 60.0)
    service = Service()
    calls = JoinedCalls(service.call)
    asked = []
    for number in range(CALLS_AT_ONCE):
        asked.append(asyncio.create_task(calls.ask(number, num_tokens=1)))
        await service.until_running(number + 1)
    asked += [asyncio.create_task(calls.ask(number, num_tokens=1)) for number in range(10, 20)]
    await asyncio.sleep(0)
    assert len(service.calls) == CALLS_AT_ONCE
    service.gate.set()
    assert await asyncio.gather(*asked) == [n * n for n in [*range(CALLS_AT_ONCE), *range(10, 20)]]
    assert service.calls[CALLS_AT_ONCE:] == [list(range(10, 20))]


async def test_a_slow_service_is_asked_in_parallel() -> None:
    service = Service()
    calls = JoinedCalls(service.call)
    asked = []
    for number in range(CALLS_AT_ONCE + 3):
        asked.append(asyncio.create_task(calls.ask(number, num_tokens=1)))
        await service.until_running(number + 1)
    service.gate.set()
    assert await asyncio.gather(*asked) == [n * n for n in range(CALLS_AT_ONCE + 3)]


async def test_a_call_holds_no_more_than_fits() -> None:
    service = Service()
    service.gate.set()
    calls = JoinedCalls(service.call)
    await asyncio.gather(*(calls.ask(number, num_tokens=1) for number in range(3 * MAX_ITEMS)))
    assert max(map(len, service.calls)) == MAX_ITEMS
    service.calls.clear()
    half = MAX_TOKENS // 2
    await asyncio.gather(*(calls.ask(number, num_tokens=half) for number in range(6)))
    assert {len(call) for call in service.calls} == {2}
    assert sorted(number for call in service.calls for number in call) == list(range(6))


@pytest.mark.parametrize("error", [InvalidInput("items", got=3, allowed="4"), InternalError("nan")])
async def test_one_items_fault_is_its_own(error: Exception) -> None:
    service = Service()
    service.errors[3] = error
    service.gate.set()
    calls = JoinedCalls(service.call)
    found = await asyncio.gather(
        *(calls.ask(number, num_tokens=1) for number in range(6)), return_exceptions=True
    )
    assert found == [0, 1, 4, error, 16, 25]


async def test_a_service_that_is_away_is_not_asked_item_by_item() -> None:
    service = Service()
    error = service.errors[0] = Unavailable("gone")
    service.gate.set()
    calls = JoinedCalls(service.call)
    found = await asyncio.gather(
        *(calls.ask(number, num_tokens=1) for number in range(6)), return_exceptions=True
    )
    assert found == [error] * 6
    assert len(service.calls) == 1


async def test_items_of_askers_who_left_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "LONGEST_WAIT_SECONDS", 60.0)
    service = Service()
    calls = JoinedCalls(service.call)
    first = []
    for number in range(CALLS_AT_ONCE):
        first.append(asyncio.create_task(calls.ask(number, num_tokens=1)))
        await service.until_running(number + 1)
    leaves = asyncio.create_task(calls.ask(7, num_tokens=1))
    stays = asyncio.create_task(calls.ask(8, num_tokens=1))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    service.gate.set()
    assert await stays == 64
    await asyncio.gather(*first)
    assert [8] in service.calls
    assert not any(7 in call for call in service.calls)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for chance to keep it apart from others."""
    monkeypatch.setattr(solo, "_APART_SECONDS", 0.0)


async def test_who_kills_replicas_is_told_apart_from_those_beside_it(at_once: None) -> None:
    service = Service()
    service.poison.add(3)
    service.gate.set()
    calls = JoinedCalls(service.call)
    found = await asyncio.gather(
        *(calls.ask(number, num_tokens=1) for number in range(6)), return_exceptions=True
    )
    assert isinstance(found.pop(3), ReplicaLost)
    assert found == [0, 1, 4, 16, 25]
    assert service.calls == [list(range(6))]
    assert service.exclusive == [list(range(6)), [0], [1], [2], [3], [4], [5]]


async def test_a_replica_that_dies_of_something_else_costs_one_call_more(at_once: None) -> None:
    service = Service()
    service.errors[3] = ReplicaLost("Socket closed")
    service.gate.set()
    calls = JoinedCalls(service.call)
    asked = [asyncio.create_task(calls.ask(number, num_tokens=1)) for number in range(6)]
    async with asyncio.timeout(5):
        while not service.calls:  # noqa: ASYNC110 - a condition with a deadline
            await asyncio.sleep(0)
    service.errors.clear()
    assert await asyncio.gather(*asked) == [0, 1, 4, 9, 16, 25]
    assert (service.calls, service.exclusive) == ([list(range(6))], [list(range(6))])


async def test_a_suspect_goes_alone_and_comes_back_until_there_is_room(at_once: None) -> None:
    service = Service()
    service.refusals = [
        Overloaded("others", retry_after_seconds=0.0),
        Unavailable("loading"),
        Overloaded("others", retry_after_seconds=0.0),
    ]
    service.gate.set()
    calls = JoinedCalls(service.call)
    assert await calls.ask(7, num_tokens=1, exclusive=True) == 49
    assert (service.calls, service.exclusive) == ([], [[7]] * 4)


async def test_a_replica_that_never_comes_back_is_nobodys_doing(
    at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solo, "_RETURN_SECONDS", 0.0)
    service = Service()
    service.refusals = [Unavailable("loading")]
    with pytest.raises(Unavailable) as raised:
        await JoinedCalls(service.call).ask(7, num_tokens=1, exclusive=True)
    assert not isinstance(raised.value, ReplicaLost)
