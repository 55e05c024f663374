"""Exclusive requests of the engine: one starts when nothing is running, and nothing starts while it runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from transformers import PreTrainedModel

from fairlead.types import SamplingParams
from tests.unit.services.policy.policy_world import LONG, SAMPLING, model_without_end, request, running
from tests.waiting import until


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return model_without_end(tmp_path_factory.mktemp("model"))


async def test_exclusive_request_starts_after_those_before_it_and_before_those_after(loaded: PreTrainedModel):
    async with running(loaded, max_slots=4) as engine:
        thread = engine._thread
        starts: list[tuple[str, int]] = []

        def asked(name: str):
            exclusive = replace(request(SAMPLING), exclusive=True)
            note = lambda: starts.append((name, len(thread._request_of)))  # noqa: E731
            return asyncio.create_task(engine.generate(exclusive, deadline=None, on_start=note))

        expected = await engine.generate(request(SAMPLING), deadline=None)
        others = [asyncio.create_task(engine.generate(request(LONG), deadline=None)) for _ in range(3)]
        await until(lambda: len(thread._request_of) == 3)
        first, second = asked("first"), asked("second")
        await until(lambda: len(thread._scheduler) == 2)
        late = asyncio.create_task(engine.generate(request(LONG), deadline=None))
        assert [await first, await second] == [expected, expected]
        assert not late.done()
        await asyncio.gather(*others, late)
    assert starts == [("first", 0), ("second", 0)]


async def test_nothing_runs_next_to_an_exclusive_request(loaded: PreTrainedModel):
    long = SamplingParams(max_new_tokens=100, seed=1)
    async with running(loaded, max_slots=4) as engine:
        thread = engine._thread
        first = asyncio.create_task(engine.generate(replace(request(long), exclusive=True), deadline=None))
        await until(lambda: len(thread._request_of) == 1)
        other = asyncio.create_task(engine.generate(request(SAMPLING, (1, 7)), deadline=None))
        while not first.done():
            assert len(thread._request_of) <= 1
            await asyncio.sleep(0)
        await asyncio.gather(first, other)


@pytest.mark.parametrize("running_others", [0, 1])
async def test_cancelled_exclusive_request_frees_the_slot(loaded: PreTrainedModel, running_others: int):
    """Whether it runs or waits for another request."""
    async with running(loaded, max_slots=4) as engine:
        thread = engine._thread
        others = [
            asyncio.create_task(engine.generate(request(LONG), deadline=None)) for _ in range(running_others)
        ]
        await until(lambda: len(thread._request_of) == running_others)
        gone = asyncio.create_task(engine.generate(replace(request(LONG), exclusive=True), deadline=None))
        await until(lambda: len(thread._request_of) + len(thread._scheduler) == running_others + 1)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        async with asyncio.timeout(20):
            await engine.generate(request(SAMPLING), deadline=None)
            await asyncio.gather(*others)
