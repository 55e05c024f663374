"""Exclusive requests of the engine: one starts when nothing is running, and nothing starts while it runs."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest
from transformers import PreTrainedModel

from fairlead.errors import Overloaded
from fairlead.types import SamplingParams
from tests.unit.services.policy.policy_world import LONG, SAMPLING, model_without_end, request, running
from tests.waiting import until


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return model_without_end(tmp_path_factory.mktemp("model"))


async def test_exclusive_request_is_refused_until_others_end_and_then_reserved(loaded: PreTrainedModel):
    async with running(loaded, max_slots=4) as engine:
        exclusive = replace(request(SAMPLING), exclusive=True)
        expected = await engine.generate(request(SAMPLING), deadline=None)
        steps = engine._thread._metrics.steps._value
        others = [asyncio.create_task(engine.generate(request(LONG), deadline=None)) for _ in range(3)]
        done = steps.get()
        await until(lambda: steps.get() > done + 3)
        with pytest.raises(Overloaded) as refused:
            await engine.generate(exclusive, deadline=None)
        assert refused.value.retry_after_seconds < 1
        late = asyncio.create_task(engine.generate(request(LONG), deadline=None))
        await asyncio.gather(*others)
        # The slot is reserved: a later request starts only after the exclusive one has ended.
        found = None
        async with asyncio.timeout(20):
            while found is None:
                with contextlib.suppress(Overloaded):
                    found = await engine.generate(exclusive, deadline=None)
        assert found == expected
        assert not late.done()
        await late


async def test_nothing_runs_next_to_an_exclusive_request(loaded: PreTrainedModel):
    long = SamplingParams(max_new_tokens=100, seed=1)
    async with running(loaded, max_slots=4) as engine:
        thread = engine._thread
        first = asyncio.create_task(engine.generate(replace(request(long), exclusive=True), deadline=None))
        await until(lambda: len(thread._request_of) == 1)
        with pytest.raises(Overloaded):
            await engine.generate(replace(request(SAMPLING), exclusive=True), deadline=None)
        other = asyncio.create_task(engine.generate(request(SAMPLING, (1, 7)), deadline=None))
        while not first.done():
            assert len(thread._request_of) <= 1
            await asyncio.sleep(0)
        await asyncio.gather(first, other)


async def test_cancelled_exclusive_request_frees_the_slot(loaded: PreTrainedModel):
    async with running(loaded, max_slots=4) as engine:
        gone = asyncio.create_task(engine.generate(replace(request(LONG), exclusive=True), deadline=None))
        await until(lambda: len(engine._thread._request_of) == 1)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        async with asyncio.timeout(20):
            await engine.generate(request(SAMPLING), deadline=None)
