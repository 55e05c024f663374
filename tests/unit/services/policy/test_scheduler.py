"""Who gets a slot: in order, when it pays, and never in the way of others."""

from __future__ import annotations

import pytest

from fairlead.errors import Overloaded
from fairlead.types import SamplingParams, WeightVersion
from services.policy.pending_request import PendingRequest
from services.policy.sample_state import SampleState
from services.policy.scheduler import Scheduler

OLD, NEW = WeightVersion(1, 0), WeightVersion(1, 1)


def ticket(count: int = 1, *, min_version: WeightVersion | None = None, tokens: int = 10) -> PendingRequest:
    samples = [
        SampleState((4,), SamplingParams(), index, frozenset(), limit=tokens - 1) for index in range(count)
    ]
    return PendingRequest(samples, min_version=min_version, deadline=None)


def put(scheduler: Scheduler, *tickets: PendingRequest) -> None:
    for each in tickets:
        scheduler.put(each, tokens_per_second=100)


def test_first_come_first_served_within_the_free_slots() -> None:
    scheduler = Scheduler(slots=8, max_queue_tokens=1_000)
    first, second = ticket(3), ticket(4)
    put(scheduler, first, second)
    taken = scheduler.take(free=5, version=OLD)
    assert taken == [(first, sample) for sample in first.samples] + [
        (second, sample) for sample in second.samples[:2]
    ]
    assert scheduler.take(free=8, version=OLD) == [(second, sample) for sample in second.samples[2:]]
    assert len(scheduler) == 0


def test_who_waits_for_newer_weights_blocks_nobody() -> None:
    scheduler = Scheduler(slots=4, max_queue_tokens=1_000)
    patient, other = ticket(min_version=NEW), ticket()
    put(scheduler, patient, other)
    assert scheduler.take(free=4, version=OLD) == [(other, other.samples[0])]
    assert scheduler.take(free=4, version=OLD) == []
    assert scheduler.take(free=4, version=NEW) == [(patient, patient.samples[0])]


def test_a_prefill_waits_a_little_for_more_free_slots() -> None:
    scheduler = Scheduler(slots=32, max_queue_tokens=10_000)
    put(scheduler, ticket(20))
    assert [len(scheduler.take(free=1, version=OLD)) for _ in range(6)] == [0, 0, 0, 0, 1, 0]
    assert len(scheduler.take(free=4, version=OLD)) == 4
    one = Scheduler(slots=32, max_queue_tokens=10_000)
    put(one, ticket(1))
    assert len(one.take(free=1, version=OLD)) == 1, "nothing to wait for"
    assert one.take(free=0, version=OLD) == []


def test_the_queue_is_bounded_in_tokens_and_forgets_who_left() -> None:
    scheduler = Scheduler(slots=1, max_queue_tokens=35)
    huge = ticket(9)
    put(scheduler, huge)  # alone it may be larger than the bound, or it could never run
    with pytest.raises(Overloaded, match="90 tokens are waiting, 10 more exceed the limit of 35") as refused:
        put(scheduler, ticket())
    assert refused.value.retry_after_seconds == 0.9
    huge.future.cancel()
    scheduler.drop_closed()
    assert len(scheduler) == 0
    put(scheduler, ticket(), ticket(2))
    with pytest.raises(Overloaded, match="30 tokens are waiting, 10 more exceed the limit of 35"):
        put(scheduler, ticket())
    scheduler.take(free=1, version=OLD)
    put(scheduler, ticket())
