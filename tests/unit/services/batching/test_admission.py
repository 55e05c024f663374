"""Admission limits waiting tokens and waiting time; bulk yields without starving; batches overlap."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config.serving import BatchingSection
from fairlead.errors import InvalidInput, Overloaded
from fairlead.types import Priority
from services.batching.batch_queue import Admission, Speed
from services.batching.batcher import MicroBatcher
from tests.waiting import until

SECTION = BatchingSection(max_batch_tokens=800, max_queue_tokens=10_000, max_queue_seconds=2.0)


def admission_of(section: BatchingSection = SECTION) -> Admission:
    return Admission(section, field_name="items")


def check(admission: Admission, total: int, *, online: int = 0, bulk: int = 0, priority=Priority.ONLINE):
    admission.check(total, priority, online_tokens=online, bulk_tokens=bulk)


def test_small_batches_do_not_update_speed():
    """A first batch of two tokens takes the fixed time of a call; it must cause no refusals."""
    speed = Speed(max_batch_tokens=800)
    speed.learn(2, 0.05)
    assert speed.seconds(10_000) == 0.0
    speed.learn(100, 0.1)
    assert speed.seconds(1_000) == pytest.approx(1.0)
    for _ in range(50):
        speed.learn(800, 0.4)
    assert speed.seconds(1_000) == pytest.approx(0.5, rel=1e-3)


def test_no_refusal_for_time_before_first_measurement():
    check(admission_of(), 500, online=9_000)


def test_request_that_would_wait_too_long_is_refused():
    admission = admission_of()
    admission.ended(800, 1.0)
    check(admission, 500, online=1_500)
    with pytest.raises(Overloaded, match=r"would wait 3 s, the limit is 2 s") as refused:
        check(admission, 500, online=2_400)
    assert refused.value.retry_after_seconds == pytest.approx(1.0)
    # An empty queue accepts any request.
    check(admission, 5_000, online=0)


def test_running_and_chosen_batches_add_to_the_wait():
    admission = admission_of()
    admission.ended(800, 1.0)
    admission.begun(800)
    admission.chosen(800)
    assert admission.wait_seconds(400) == pytest.approx(2.5, abs=0.1)
    admission.begun(800)
    assert admission.wait_seconds(400) == pytest.approx(1.5, abs=0.1)
    admission.ended(800, 1.0)
    assert admission.wait_seconds(400) == pytest.approx(0.5)


def test_bulk_may_fill_half_the_queue_without_time_limit():
    admission = admission_of()
    admission.ended(800, 1.0)
    check(admission, 500, bulk=4_500, priority=Priority.BULK)
    with pytest.raises(Overloaded, match="4600 tokens are waiting, the limit is 5000"):
        check(admission, 500, bulk=4_600, priority=Priority.BULK)
    with pytest.raises(InvalidInput, match="items: got '5001 tokens', allowed: at most 5000 tokens"):
        check(admission, 5_001, priority=Priority.BULK)
    # Online does not wait for bulk.
    check(admission, 500, online=1_000, bulk=5_000)


class Model:
    """Records the order of the items it computed; can be blocked."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.batches = 0
        self.free = threading.Event()
        self.entered = threading.Event()
        self.seconds = 0.0

    def __call__(self, items: Sequence[str]) -> list[str]:
        self.entered.set()
        assert self.free.wait(10)
        if self.seconds:
            time.sleep(self.seconds)
        self.batches += 1
        self.names += items
        return list(items)


def batcher_of(model, *, max_bulk_wait_seconds: float = 1.0, **settings: object) -> MicroBatcher[str, str]:
    section = BatchingSection.model_validate({"max_batch_tokens": 10} | settings)
    batcher_metrics = metrics.BatcherMetrics(CollectorRegistry())
    return MicroBatcher(
        model,
        section,
        batcher_metrics=batcher_metrics,
        field_name="items",
        max_bulk_wait_seconds=max_bulk_wait_seconds,
    )


async def test_online_goes_before_bulk():
    model = Model()
    async with batcher_of(model, max_bulk_wait_seconds=60) as batcher:
        tasks = [asyncio.create_task(batcher.submit(["first"], [1]))]
        await until(model.entered.is_set)
        # A full batch is chosen at once, so one bulk batch is taken before the online requests arrive.
        tasks += [
            asyncio.create_task(batcher.submit([f"bulk{n}"], [10], priority=Priority.BULK)) for n in range(4)
        ]
        await until(lambda: batcher.queue_tokens == 40)
        tasks += [asyncio.create_task(batcher.submit([f"online{n}"], [10])) for n in range(4)]
        await until(lambda: batcher.queue_tokens == 80)
        model.free.set()
        await asyncio.gather(*tasks)
    order = [name for name in model.names if name not in ("first", "bulk0")]
    assert order == [f"online{n}" for n in range(4)] + [f"bulk{n}" for n in range(1, 4)]


async def test_steady_online_stream_does_not_starve_bulk():
    model = Model()
    model.seconds = 0.005
    model.free.set()
    async with batcher_of(model, max_bulk_wait_seconds=0.03) as batcher:
        stop = asyncio.Event()

        async def stream() -> None:
            while not stop.is_set():
                await batcher.submit(["online"], [10])

        streams = [asyncio.create_task(stream()) for _ in range(6)]
        await until(lambda: batcher.queue_tokens >= 30)
        async with asyncio.timeout(30):
            await batcher.submit([f"bulk{n}" for n in range(4)], [10] * 4, priority=Priority.BULK)
        stop.set()
        await asyncio.gather(*streams)
    places = [index for index, name in enumerate(model.names) if name.startswith("bulk")]
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert min(gaps) >= 2, "online batches are served between two bulk batches"


async def test_full_batch_is_prepared_while_another_runs():
    model, prepared = Model(), list[list[str]]()

    def prepare(items: Sequence[str]):
        prepared.append(list(items))
        return lambda: model(items)

    section = BatchingSection(max_batch_tokens=10)
    batcher_metrics = metrics.BatcherMetrics(CollectorRegistry())
    async with MicroBatcher[str, str](
        model, section, batcher_metrics=batcher_metrics, field_name="items", prepare=prepare
    ) as batcher:
        tasks = [asyncio.create_task(batcher.submit(["a"], [1]))]
        await until(model.entered.is_set)
        tasks.append(asyncio.create_task(batcher.submit(["b"], [5])))
        await until(lambda: batcher.queue_tokens == 5)
        assert prepared == [["a"]], "a batch that is not full waits for more items"
        tasks.append(asyncio.create_task(batcher.submit(["c"], [5])))
        await until(lambda: len(prepared) == 2)
        assert sorted(prepared[1]) == ["b", "c"]
        assert model.batches == 0, "while the first one runs"
        model.free.set()
        await asyncio.gather(*tasks)


async def test_queue_and_compute_time_add_up():
    model = Model()
    model.seconds = 0.03
    model.free.set()
    async with batcher_of(model) as batcher:
        started = time.monotonic()
        first, second = await asyncio.gather(
            batcher.submit_timed(["a"], [10]), batcher.submit_timed(["b"] * 2, [8] * 2)
        )
        whole = time.monotonic() - started
        assert first.compute_seconds >= 0.03
        assert second.compute_seconds >= 0.06, "two batches"
        assert first.queue_seconds + first.compute_seconds <= whole
        assert second.queue_seconds >= first.compute_seconds / 2
        assert second.results == ["b", "b"]
