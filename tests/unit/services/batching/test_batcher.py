"""The micro-batcher with a plain model: token budget, order, limits and dropped requests."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config.serving import BatchingSection
from fairlead.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from services.batching.batcher import MicroBatcher
from services.batching.packing import SMALL_TOKENS, WINDOW_BATCHES, pack
from tests.waiting import until

Item = tuple[int, int]
"""(name, length)."""


class Model:
    """Computes name · 10 and records its batches; can be blocked."""

    def __init__(self) -> None:
        self.batches: list[list[Item]] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def __call__(self, items: Sequence[Item]) -> list[int | Exception]:
        self.batches.append(list(items))
        self.entered.set()
        assert self.free.wait(10)
        return [name * 10 for name, _ in items]

    @property
    def names(self) -> list[int]:
        return [name for batch in self.batches for name, _ in batch]


def batcher_of(model, registry: CollectorRegistry | None = None, **limits: int) -> MicroBatcher[Item, int]:
    return MicroBatcher(
        model,
        BatchingSection(**limits),
        batcher_metrics=metrics.BatcherMetrics(registry or CollectorRegistry()),
        field_name="items",
    )


async def submit(batcher: MicroBatcher[Item, int], items: Sequence[Item], **options) -> list[int]:
    return await batcher.submit(items, [length for _, length in items], **options)


async def occupy(batcher: MicroBatcher[Item, int], model: Model) -> asyncio.Task[list[int]]:
    """Block the model with one sequence; the queue is empty afterwards."""
    model.free.clear()
    model.entered.clear()
    task = asyncio.create_task(submit(batcher, [(0, 1)]))
    await until(model.entered.is_set)
    return task


@given(st.lists(st.integers(1, 200), max_size=60), st.integers(1, 300))
def test_pack_keeps_the_budget_and_every_sequence(lengths, budget):
    batches = pack(lengths, max_batch_tokens=budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert longest <= SMALL_TOKENS or min(lengths[index] for index in batch) * 2 >= longest
    # Lengths never increase from batch to batch, so no other split of the sorted order pads less.
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 64))
def test_pack_starts_a_new_batch_only_when_necessary(lengths, budget):
    batches = pack(lengths, max_batch_tokens=budget)
    for before, after in itertools.pairwise(batches):
        longest, follower = lengths[before[0]], lengths[after[0]]
        full = (len(before) + 1) * longest > budget
        dissimilar = longest > SMALL_TOKENS and follower * 2 < longest
        assert full or dissimilar


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=8), min_size=1, max_size=12),
    st.integers(1, 120),
)
def test_every_caller_gets_its_results_in_order(requests, budget):
    model = Model()

    async def run() -> None:
        names = iter(range(1, 10_000))
        sent = [[(next(names), length) for length in request] for request in requests]
        async with batcher_of(model, max_batch_tokens=budget) as batcher:
            answers = await asyncio.gather(*(submit(batcher, items) for items in sent))
            assert answers == [[name * 10 for name, _ in items] for items in sent]
            assert batcher.queue_tokens == 0

    asyncio.run(run())
    assert sorted(model.names) == list(range(1, 1 + sum(map(len, requests))))
    for batch in model.batches:
        assert len(batch) == 1 or len(batch) * max(length for _, length in batch) <= budget


async def test_waiting_requests_share_a_batch_and_idle_model_starts_at_once():
    model = Model()
    async with batcher_of(model, max_batch_tokens=100) as batcher:
        held = await occupy(batcher, model)
        callers = [asyncio.create_task(submit(batcher, [(name, 10)])) for name in range(1, 6)]
        await until(lambda: batcher.queue_tokens == 50)
        model.free.set()
        assert await asyncio.gather(held, *callers) == [[0], [10], [20], [30], [40], [50]]
    assert model.batches[0] == [(0, 1)]
    assert sorted(model.batches[1]) == [(name, 10) for name in range(1, 6)]


async def test_cancelled_request_is_not_computed():
    model, registry = Model(), CollectorRegistry()
    async with batcher_of(model, registry, max_batch_tokens=100) as batcher:
        held = await occupy(batcher, model)
        gone = asyncio.create_task(submit(batcher, [(1, 10), (2, 10)]))
        stays = asyncio.create_task(submit(batcher, [(3, 10)]))
        await until(lambda: batcher.queue_tokens == 30)
        gone.cancel()
        await until(lambda: batcher.queue_tokens == 10)
        model.free.set()
        assert await stays == [30]
        await held
        with pytest.raises(asyncio.CancelledError):
            await gone
    assert sorted(model.names) == [0, 3]
    assert registry.get_sample_value("fairlead_batcher_sequences_total", {"result": "cancelled"}) == 2


async def test_request_past_its_deadline_is_not_computed():
    model, registry = Model(), CollectorRegistry()
    async with batcher_of(model, registry) as batcher:
        held = await occupy(batcher, model)
        late = asyncio.create_task(submit(batcher, [(1, 10)], deadline=time.monotonic()))
        in_time = asyncio.create_task(submit(batcher, [(2, 10)], deadline=time.monotonic() + 60))
        await until(lambda: batcher.queue_tokens == 20)
        model.free.set()
        with pytest.raises(DeadlineExceeded, match="waited for the model"):
            await late
        assert await in_time == [20]
        await held
        assert batcher.queue_tokens == 0
    assert sorted(model.names) == [0, 2]
    assert registry.get_sample_value("fairlead_batcher_sequences_total", {"result": "expired"}) == 1


async def test_full_queue_refuses_with_delay_and_accepts_again_later():
    model = Model()
    async with batcher_of(model, max_queue_tokens=100) as batcher:
        await submit(batcher, [(9, 50)])
        held = await occupy(batcher, model)
        waiting = asyncio.create_task(submit(batcher, [(1, 60)]))
        await until(lambda: batcher.queue_tokens == 60)
        with pytest.raises(Overloaded, match="60 tokens are waiting, the limit is 100") as refused:
            await submit(batcher, [(2, 41)])
        assert 0.05 <= refused.value.retry_after_seconds <= 30
        fits = asyncio.create_task(submit(batcher, [(3, 40)]))
        await until(lambda: batcher.queue_tokens == 100)
        model.free.set()
        assert await waiting == [10]
        assert await fits == [30]
        await held
        assert await submit(batcher, [(4, 100)]) == [40]
    assert 2 not in model.names


async def test_request_larger_than_queue_is_invalid_input():
    async with batcher_of(Model(), max_queue_tokens=100) as batcher:
        with pytest.raises(InvalidInput, match="items: got '101 tokens', allowed: at most 100 tokens"):
            await submit(batcher, [(1, 50), (2, 51)])


@pytest.mark.parametrize(("odd", "common"), [(90, 10), (10, 90)])
async def test_oldest_sequence_is_in_every_batch(odd, common):
    """With one long sequence among short ones, and one short among long ones."""
    model = Model()
    async with batcher_of(model, max_batch_tokens=100, max_queue_tokens=10**6) as batcher:
        held = await occupy(batcher, model)
        callers = [asyncio.create_task(submit(batcher, [(1, odd)]))]
        callers += [asyncio.create_task(submit(batcher, [(name, common)])) for name in range(2, 400)]
        await until(lambda: batcher.queue_tokens == odd + 398 * common)
        model.free.set()
        await asyncio.gather(held, *callers)
    waiting = set(range(1, 400))
    for batch in model.batches[1:]:
        names = {name for name, _ in batch}
        assert min(waiting) in names
        # No sequence is overtaken by one that is outside the window.
        assert max(names) <= min(waiting) + WINDOW_BATCHES * 100 // min(odd, common) + 1
        waiting -= names
    assert not waiting


async def test_error_reaches_only_its_own_request():
    def compute(items: Sequence[Item]) -> list[int | Exception]:
        if len(items) > 1 and any(name == 13 for name, _ in items):
            raise RuntimeError("out of memory")
        return [ValueError("not finite") if name == 13 else name for name, _ in items]

    async with batcher_of(compute) as batcher:
        answers = await asyncio.gather(
            submit(batcher, [(1, 5), (2, 5)]),
            submit(batcher, [(3, 5), (13, 5)]),
            submit(batcher, [(4, 5)]),
            return_exceptions=True,
        )
        assert answers[0] == [1, 2]
        assert isinstance(answers[1], ValueError)
        assert answers[2] == [4]
        assert await submit(batcher, [(5, 5)]) == [5], "the batcher continues"


async def test_closing_fails_waiting_and_new_requests():
    model = Model()
    batcher = batcher_of(model)
    async with batcher:
        held = await occupy(batcher, model)
        waiting = asyncio.create_task(submit(batcher, [(1, 5)]))
        await until(lambda: batcher.queue_tokens == 5)
        threading.Timer(0.05, model.free.set).start()
    assert await held == [0], "the running batch is finished"
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await submit(batcher, [(2, 5)])
    assert model.names == [0]


async def test_random_cancellations_under_load():
    """Every request that is not cancelled gets its results; no token stays counted."""
    rng = random.Random(5)
    model = Model()
    async with batcher_of(model, max_batch_tokens=64) as batcher:
        tasks = []
        for number in range(300):
            items = [(number * 10 + i, rng.randint(1, 60)) for i in range(rng.randint(1, 5))]
            tasks.append((items, asyncio.create_task(submit(batcher, items))))
            if rng.random() < 0.3:
                rng.choice(tasks)[1].cancel()
            if rng.random() < 0.3:
                await asyncio.sleep(0)
        done = await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
        for (items, _), result in zip(tasks, done, strict=True):
            if not isinstance(result, asyncio.CancelledError):
                assert result == [name * 10 for name, _ in items]
        assert batcher.queue_tokens == 0
    assert sum(not isinstance(result, BaseException) for result in done) > 100
    assert len(set(model.names)) == len(model.names)


async def test_queue_metric_sums_two_batchers():
    """As while a model is replaced in a running service."""
    registry = CollectorRegistry()
    batcher_metrics = metrics.BatcherMetrics(registry)
    models = [Model(), Model()]
    batchers = [
        MicroBatcher(
            model, BatchingSection(max_batch_tokens=64), batcher_metrics=batcher_metrics, field_name="items"
        )
        for model in models
    ]

    def waiting() -> float | None:
        return registry.get_sample_value("fairlead_batcher_queue_tokens")

    async with batchers[0], batchers[1]:
        busy = [await occupy(batcher, model) for batcher, model in zip(batchers, models, strict=True)]
        tasks = [
            asyncio.create_task(submit(batcher, [(1, length)]))
            for batcher, length in zip(batchers, (10, 7), strict=True)
        ]
        await until(lambda: waiting() == 17)
        models[0].free.set()
        await tasks[0]
        assert waiting() == 7
        models[1].free.set()
        await asyncio.gather(*busy, *tasks)
        assert waiting() == 0
