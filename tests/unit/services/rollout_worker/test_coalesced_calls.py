"""Coalesced calls return to each item the result of its own call; an error of one item fails no other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from fairlead.errors import InternalError, InvalidInput, Overloaded, ReplicaLost, Unavailable
from services.rollout_worker import coalesced_calls
from services.rollout_worker.coalesced_calls import MAX_CALLS, MAX_SEQUENCES, MAX_TOKENS, CoalescedCalls


class Service:
    """Squares numbers once its gate is open; records its calls."""

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
        async with asyncio.timeout(30):
            while self.running < number:  # noqa: ASYNC110 - a condition with a deadline
                await asyncio.sleep(0)


async def test_items_that_arrive_during_calls_are_coalesced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalesced_calls, "LONGEST_WAIT_SECONDS", 60.0)
    service = Service()
    calls = CoalescedCalls(service.call)
    pending = []
    for number in range(MAX_CALLS):
        pending.append(asyncio.create_task(calls.call(number, num_tokens=1)))
        await service.until_running(number + 1)
    pending += [asyncio.create_task(calls.call(number, num_tokens=1)) for number in range(10, 20)]
    await asyncio.sleep(0)
    assert len(service.calls) == MAX_CALLS
    service.gate.set()
    assert await asyncio.gather(*pending) == [n * n for n in [*range(MAX_CALLS), *range(10, 20)]]
    assert service.calls[MAX_CALLS:] == [list(range(10, 20))]


async def test_slow_service_gets_parallel_calls() -> None:
    service = Service()
    calls = CoalescedCalls(service.call)
    pending = []
    for number in range(MAX_CALLS + 3):
        pending.append(asyncio.create_task(calls.call(number, num_tokens=1)))
        await service.until_running(number + 1)
    service.gate.set()
    assert await asyncio.gather(*pending) == [n * n for n in range(MAX_CALLS + 3)]


async def test_held_items_wait_until_no_more_are_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    service, expected = Service(), 3
    service.gate.set()
    calls = CoalescedCalls(service.call, expects_more=lambda: expected > 0)
    pending = []
    for number in range(3):
        pending.append(asyncio.create_task(calls.call(number, num_tokens=1, hold_seconds=60.0)))
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    assert not service.calls
    expected = 0
    pending.append(asyncio.create_task(calls.call(3, num_tokens=1, hold_seconds=60.0)))
    assert await asyncio.gather(*pending) == [0, 1, 4, 9]
    assert service.calls == [[0, 1, 2, 3]]


async def test_items_are_held_no_longer_than_asked_or_until_a_call_is_full() -> None:
    service = Service()
    service.gate.set()
    calls = CoalescedCalls(service.call, expects_more=lambda: True)
    assert await asyncio.gather(*(calls.call(n, num_tokens=1, hold_seconds=0.05) for n in range(2))) == [0, 1]
    assert service.calls == [[0, 1]]
    # The second one fills the call, and the third is not held at all.
    service.calls.clear()
    half = MAX_SEQUENCES // 2
    async with asyncio.timeout(30):
        await asyncio.gather(
            *(calls.call(n, num_tokens=1, num_sequences=half, hold_seconds=60.0) for n in (4, 5))
        )
        assert service.calls == [[4, 5]]
        assert await calls.call(6, num_tokens=1) == 36


async def test_items_held_during_a_call_are_not_sent_when_it_ends() -> None:
    service = Service()
    calls = CoalescedCalls(service.call, expects_more=lambda: True)
    first = asyncio.create_task(calls.call(1, num_tokens=1))
    await service.until_running(1)
    held = [asyncio.create_task(calls.call(n, num_tokens=1, hold_seconds=60.0)) for n in (2, 3)]
    await asyncio.sleep(0)
    service.gate.set()
    assert await first == 1
    await asyncio.sleep(0.05)
    assert service.calls == [[1]]
    assert await calls.call(4, num_tokens=1) == 16
    assert await asyncio.gather(*held) == [4, 9]
    assert service.calls == [[1], [2, 3, 4]]


async def test_call_has_at_most_max_sequences_and_max_tokens() -> None:
    service = Service()
    service.gate.set()
    calls = CoalescedCalls(service.call)
    await asyncio.gather(*(calls.call(number, num_tokens=1) for number in range(3 * MAX_SEQUENCES)))
    assert max(map(len, service.calls)) == MAX_SEQUENCES
    service.calls.clear()
    half = MAX_TOKENS // 2
    await asyncio.gather(*(calls.call(number, num_tokens=half) for number in range(6)))
    assert {len(call) for call in service.calls} == {2}
    assert sorted(number for call in service.calls for number in call) == list(range(6))
    # A group is never divided: two of three eighths fit, one that is larger than a call travels by itself.
    for sequences, together in ((MAX_SEQUENCES * 3 // 8, {2}), (MAX_SEQUENCES + 1, {1})):
        service.calls.clear()
        await asyncio.gather(
            *(calls.call(number, num_tokens=1, num_sequences=sequences) for number in range(6))
        )
        assert {len(call) for call in service.calls} == together


@pytest.mark.parametrize("error", [InvalidInput("items", got=3, allowed="4"), InternalError("nan")])
async def test_invalid_item_fails_no_other_item(error: Exception) -> None:
    service = Service()
    service.errors[3] = error
    service.gate.set()
    calls = CoalescedCalls(service.call)
    found = await asyncio.gather(
        *(calls.call(number, num_tokens=1) for number in range(6)), return_exceptions=True
    )
    assert found == [0, 1, 4, error, 16, 25]


async def test_unavailable_service_gets_one_call_for_all_items() -> None:
    service = Service()
    error = service.errors[0] = Unavailable("gone")
    service.gate.set()
    calls = CoalescedCalls(service.call)
    found = await asyncio.gather(
        *(calls.call(number, num_tokens=1) for number in range(6)), return_exceptions=True
    )
    assert found == [error] * 6
    assert len(service.calls) == 1


async def test_items_of_cancelled_callers_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalesced_calls, "LONGEST_WAIT_SECONDS", 60.0)
    service = Service()
    calls = CoalescedCalls(service.call)
    first = []
    for number in range(MAX_CALLS):
        first.append(asyncio.create_task(calls.call(number, num_tokens=1)))
        await service.until_running(number + 1)
    cancelled = asyncio.create_task(calls.call(7, num_tokens=1))
    kept = asyncio.create_task(calls.call(8, num_tokens=1))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    service.gate.set()
    assert await kept == 64
    await asyncio.gather(*first)
    assert [8] in service.calls
    assert not any(7 in call for call in service.calls)


@pytest.fixture
def no_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exclusive calls begin without a random delay."""
    monkeypatch.setattr(coalesced_calls, "_SPREAD_SECONDS", 0.0)


async def test_item_that_kills_replicas_is_isolated(no_spread: None) -> None:
    service = Service()
    service.poison.add(3)
    service.gate.set()
    calls = CoalescedCalls(service.call)
    found = await asyncio.gather(
        *(calls.call(number, num_tokens=1) for number in range(6)), return_exceptions=True
    )
    assert isinstance(found.pop(3), ReplicaLost)
    assert found == [0, 1, 4, 16, 25]
    assert service.calls == [list(range(6))]
    assert service.exclusive == [list(range(6)), [0], [1], [2], [3], [4], [5]]


async def test_items_are_resent_once_after_an_unrelated_death_of_a_replica(no_spread: None) -> None:
    service = Service()
    service.errors[3] = ReplicaLost("Socket closed")
    service.gate.set()
    calls = CoalescedCalls(service.call)
    pending = [asyncio.create_task(calls.call(number, num_tokens=1)) for number in range(6)]
    async with asyncio.timeout(30):
        while not service.calls:  # noqa: ASYNC110 - a condition with a deadline
            await asyncio.sleep(0)
    service.errors.clear()
    assert await asyncio.gather(*pending) == [0, 1, 4, 9, 16, 25]
    assert (service.calls, service.exclusive) == ([list(range(6))], [list(range(6))])


async def test_exclusive_call_is_retried_until_it_is_accepted(no_spread: None) -> None:
    service = Service()
    service.refusals = [
        Overloaded("others", retry_after_seconds=0.0),
        Unavailable("loading"),
        Overloaded("others", retry_after_seconds=0.0),
    ]
    service.gate.set()
    calls = CoalescedCalls(service.call)
    assert await calls.call(7, num_tokens=1, exclusive=True) == 49
    assert (service.calls, service.exclusive) == ([], [[7]] * 4)


async def test_replica_that_does_not_restart_raises_unavailable(
    no_spread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalesced_calls, "_RESTART_SECONDS", 0.0)
    service = Service()
    service.refusals = [Unavailable("loading")]
    with pytest.raises(Unavailable) as raised:
        await CoalescedCalls(service.call).call(7, num_tokens=1, exclusive=True)
    assert not isinstance(raised.value, ReplicaLost)
