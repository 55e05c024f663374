"""The scheduler: order of slots, deferred prefills, requests for newer weights, and the queue limit."""

from __future__ import annotations

import time

import pytest

from fairlead.errors import Overloaded
from fairlead.types import SamplingParams, WeightVersion
from services.policy.pending_request import PendingRequest
from services.policy.sample_state import SampleState
from services.policy.scheduler import Scheduler

OLD, NEW = WeightVersion(1, 0), WeightVersion(1, 1)


def pending(count: int = 1, *, min_version: WeightVersion | None = None, tokens: int = 10) -> PendingRequest:
    samples = [
        SampleState((4,), SamplingParams(), index, frozenset(), limit=tokens - 1) for index in range(count)
    ]
    return PendingRequest(samples, min_version=min_version, deadline=None)


def put(scheduler: Scheduler, *requests: PendingRequest) -> None:
    for each in requests:
        scheduler.put(each, tokens_per_second=100)


def test_samples_get_free_slots_in_order() -> None:
    scheduler = Scheduler(slots=8, max_queue_tokens=1_000)
    first, second = pending(3), pending(4)
    put(scheduler, first, second)
    taken = scheduler.take(free=5, version=OLD)
    assert taken == [(first, sample) for sample in first.samples] + [
        (second, sample) for sample in second.samples[:2]
    ]
    assert scheduler.take(free=8, version=OLD) == [(second, sample) for sample in second.samples[2:]]
    assert len(scheduler) == 0


def test_request_for_newer_weights_blocks_no_other() -> None:
    scheduler = Scheduler(slots=4, max_queue_tokens=1_000)
    newer, other = pending(min_version=NEW), pending()
    put(scheduler, newer, other)
    assert scheduler.take(free=4, version=OLD) == [(other, other.samples[0])]
    assert scheduler.take(free=4, version=OLD) == []
    assert scheduler.take(free=4, version=NEW) == [(newer, newer.samples[0])]


def test_prefill_is_deferred_for_more_free_slots() -> None:
    scheduler = Scheduler(slots=32, max_queue_tokens=10_000)
    put(scheduler, pending(20))
    assert [len(scheduler.take(free=1, version=OLD)) for _ in range(6)] == [0, 0, 0, 0, 1, 0]
    assert len(scheduler.take(free=4, version=OLD)) == 4
    one = Scheduler(slots=32, max_queue_tokens=10_000)
    put(one, pending(1))
    assert len(one.take(free=1, version=OLD)) == 1, "nothing to wait for"
    assert one.take(free=0, version=OLD) == []


def test_prefill_is_deferred_while_further_requests_arrive() -> None:
    scheduler = Scheduler(slots=64, max_queue_tokens=10_000)
    for number in range(3):
        put(scheduler, pending(2))
        assert scheduler.take(free=60, version=OLD) == [], f"arrival {number}"
    assert len(scheduler.take(free=60, version=OLD)) == 6, "no arrival since the last call"
    put(scheduler, pending(8))
    assert len(scheduler.take(free=60, version=OLD)) == 8, "enough for a prefill of their own"
    put(scheduler, pending(2))
    assert len(scheduler.take(free=64, version=OLD)) == 2, "nothing runs meanwhile"


def test_first_step_waits_for_a_pause_between_requests() -> None:
    scheduler = Scheduler(slots=64, max_queue_tokens=10**9)
    assert scheduler.arriving_seconds() == 0
    begun = time.monotonic()
    while time.monotonic() < begun + 1:
        put(scheduler, pending())
        if not scheduler.arriving_seconds():
            break
    assert 0.03 < time.monotonic() - begun < 1, "it does not wait for ever"
    single = Scheduler(slots=64, max_queue_tokens=10_000)
    put(single, pending())
    assert 0 < single.arriving_seconds() < 0.01
    at_once = Scheduler(slots=64, max_queue_tokens=10_000, max_deferred_steps=0)
    put(at_once, pending())
    assert at_once.arriving_seconds() == 0


def test_prefill_is_not_deferred_for_an_engine_that_batches_by_itself() -> None:
    scheduler = Scheduler(slots=32, max_queue_tokens=10_000, max_deferred_steps=0)
    put(scheduler, pending(20))
    assert len(scheduler.take(free=1, version=OLD)) == 1


def test_queue_is_limited_in_tokens_and_drops_cancelled_requests() -> None:
    scheduler = Scheduler(slots=1, max_queue_tokens=35)
    huge = pending(9)
    put(scheduler, huge)  # a single request may exceed the limit, or it could never run
    with pytest.raises(Overloaded, match="90 tokens are waiting, 10 more exceed the limit of 35") as refused:
        put(scheduler, pending())
    assert refused.value.retry_after_seconds == 0.9
    huge.future.cancel()
    put(scheduler, pending())
    assert len(scheduler) == 1, "the cancelled request no longer counts"
    put(scheduler, pending(2))
    with pytest.raises(Overloaded, match="30 tokens are waiting, 10 more exceed the limit of 35"):
        put(scheduler, pending())
    scheduler.take(free=1, version=OLD)
    put(scheduler, pending())
