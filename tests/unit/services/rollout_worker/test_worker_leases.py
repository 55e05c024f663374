"""The worker's leases: renewed, lost, released by a drain; and a queue that is away."""

from __future__ import annotations

import asyncio
import logging

import pytest

from fairlead.errors import QueueUnavailable, SchemaTooNew
from tests.memory_queue import MemoryWorkerQueue
from tests.scripted_services import (
    Script,
    answer_backwards,
)
from tests.unit.services.rollout_worker.worker_bench import bench, task


async def test_leases_are_renewed_during_a_task() -> None:
    slow = asyncio.Event()

    async def generate(request, context):
        await slow.wait()
        return await answer_backwards(request, context)

    script = Script(generate=generate)
    # Long enough for the pauses of a busy machine between two renewals.
    async with bench(script, tasks=[task(0)], lease=2.0) as b:
        await b.until(lambda: script.requests)
        other = b.broker.worker("other")
        assert list(await other.claim(count=1, block_seconds=4.0)) == []
        slow.set()
        await b.outcomes(1)
    assert len(script.requests) == 1


async def test_task_whose_lease_was_lost_is_cancelled() -> None:
    ended = asyncio.Event()

    async def generate(request, context):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise

    script = Script(generate=generate)
    async with bench(script, tasks=[task(0)], lease=0.15) as b:
        await b.until(lambda: script.requests)
        script.generate = answer_backwards
        b.trainer.dispatch([task(0)])
        await asyncio.wait_for(ended.wait(), 10)
        await b.until(lambda: b.counted("lost") == 1)
        await b.outcomes(1)
        [entry] = b.trainer.read(after="0", count=5, block_seconds=0)
    assert entry.sending.number == 2


async def test_drain_finishes_tasks_and_releases_the_rest() -> None:
    hold = asyncio.Event()

    async def generate(request, context):
        await (hold if request.request_id == "tests-0" else asyncio.Event()).wait()
        return await answer_backwards(request, context)

    script = Script(generate=generate)
    async with bench(script, tasks=[task(0), task(1), task(2)], in_flight=2, lease=60, drain=0.3) as b:
        await b.until(lambda: len(script.requests) == 2)
        b.stop.set()
        hold.set()
        await asyncio.wait_for(b.running, 10)
        outcomes = await b.outcomes(1)
        assert list(outcomes) == [0]
        other = b.broker.worker("other")
        claims = await other.claim(count=5, block_seconds=0)
        assert [(claim.task.task_id, claim.deliveries) for claim in claims] == [(1, 1), (2, 1)]
        assert b.counted("released") == 1


class FlakyQueue(MemoryWorkerQueue):
    """A queue in memory that can be made unavailable."""

    cut = False
    refuses: Exception | None = None

    async def claim(self, **arguments):
        self._check()
        return await super().claim(**arguments)

    async def renew(self, claims):
        self._check()
        return await super().renew(claims)

    async def finish(self, claim, result):
        self._check()
        return await super().finish(claim, result)

    def _check(self) -> None:
        if self.refuses is not None:
            raise self.refuses
        if self.cut:
            raise QueueUnavailable("Redis at 127.0.0.1:1 does not answer")


async def test_results_stay_in_memory_while_the_queue_is_unavailable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hold = asyncio.Event()

    async def generate(request, context):
        await hold.wait()
        return await answer_backwards(request, context)

    script = Script(generate=generate)
    caplog.set_level(logging.INFO)
    async with bench(script, tasks=[task(i) for i in range(3)], queue=FlakyQueue) as b:
        await b.until(lambda: len(script.requests) == 3)
        b.worker.queue.cut = True  # type: ignore[attr-defined]
        hold.set()
        await b.until(lambda: not b.worker.ready)
        assert b.trainer.read(after="0", count=5, block_seconds=0) == []
        b.worker.queue.cut = False  # type: ignore[attr-defined]
        assert len(await b.outcomes(3)) == 3
        await b.until(lambda: b.worker.ready)
    assert len(script.requests) == 3
    assert "the queue answers again" in caplog.text


async def test_prompt_of_a_newer_schema_ends_the_worker_after_a_drain() -> None:
    hold = asyncio.Event()

    async def generate(request, context):
        await hold.wait()
        return await answer_backwards(request, context)

    script = Script(generate=generate)
    async with bench(script, tasks=[task(0)], in_flight=2, queue=FlakyQueue) as b:
        await b.until(lambda: script.requests)
        b.worker.queue.refuses = SchemaTooNew("prompt task has schema version 2")  # type: ignore[attr-defined]
        await b.until(b.stop.is_set)
        b.worker.queue.refuses = None  # type: ignore[attr-defined]
        hold.set()
        with pytest.raises(SchemaTooNew):
            await asyncio.wait_for(b.running, 10)
        assert len(await b.outcomes(1)) == 1
