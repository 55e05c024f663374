"""The engine from the caller's side: completions, streams, cancellation, deadlines, refusals and failures."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import PreTrainedModel

from fairlead.errors import DeadlineExceeded, Overloaded, Unavailable
from fairlead.types import (
    Completion,
    FinishReason,
    SamplingParams,
    VersionSpan,
)
from tests.tiny import VOCABULARY_SIZE, tiny_tokenizer
from tests.unit.services.policy.policy_world import (
    CONTEXT,
    EACH_CACHE,
    LONG,
    SAMPLING,
    V0,
    model_without_end,
    request,
    running,
)
from tests.waiting import until


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return model_without_end(tmp_path_factory.mktemp("model"))


async def test_completion_matches_the_model(loaded: PreTrainedModel) -> None:
    async with running(loaded) as engine:
        greedy = SamplingParams(temperature=0, max_new_tokens=8)
        (completion,) = await engine.generate(request(greedy), deadline=None)
    expected = loaded.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=8, do_sample=False)[0, 3:].tolist()
    assert list(completion.token_ids) == expected
    assert completion.text == tiny_tokenizer().decode(expected, skip_special_tokens=True)
    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.version_spans == (VersionSpan(V0, 0, 8),)
    assert not completion.mixed_cache


@EACH_CACHE
async def test_samples_differ_and_are_reproducible_under_load(
    loaded: PreTrainedModel, static_cache: str
) -> None:
    async with running(loaded, static_cache=static_cache, max_slots=5) as engine:
        single = await engine.generate(request(num_samples=3), deadline=None)
        busy = await asyncio.gather(
            *[engine.generate(request(prompt=(1, 9 + i)), deadline=None) for i in range(9)],
            engine.generate(request(num_samples=3), deadline=None),
        )
    assert len({completion.token_ids for completion in single}) == 3
    assert [c.token_ids for c in busy[-1]] == [c.token_ids for c in single]


@EACH_CACHE
async def test_stream_adds_up_to_the_completion(loaded: PreTrainedModel, static_cache: str) -> None:
    wanted = request(num_samples=2)
    async with running(loaded, static_cache=static_cache) as engine:
        whole = await engine.generate(wanted, deadline=None)
        deltas: dict[int, list[Completion]] = {0: [], 1: []}
        async for index, delta in engine.stream(wanted, deadline=None):
            deltas[index].append(delta)
    for index, completion in enumerate(whole):
        parts = deltas[index]
        assert tuple(token for part in parts for token in part.token_ids) == completion.token_ids
        assert "".join(part.text for part in parts) == completion.text
        assert [part.finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1].finish_reason is completion.finish_reason
        assert all(part.version_spans == (VersionSpan(V0, 0, 1),) for part in parts)


@EACH_CACHE
async def test_stop_string_stop_token_and_context_end_a_completion(
    loaded: PreTrainedModel, static_cache: str
) -> None:
    async with running(loaded, static_cache=static_cache) as engine:
        (free,) = await engine.generate(request(), deadline=None)
        words = free.text.split()
        stop = f"{words[4][-1]} {words[5]}"
        end = next(i for i in range(1, 13) if stop in " ".join(words[:i]))
        (stopped,) = await engine.generate(request(replace(SAMPLING, stop_strings=(stop,))), deadline=None)
        assert stopped.token_ids == free.token_ids[:end]
        assert stopped.text == " ".join(words[:end])
        assert stopped.finish_reason is FinishReason.STOP
        (by_id,) = await engine.generate(
            request(replace(SAMPLING, stop_token_ids=(free.token_ids[3],))), deadline=None
        )
        assert by_id.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[3]) + 1]
        (full,) = await engine.generate(request(LONG), deadline=None)
        assert len(full.token_ids) == CONTEXT - 3
        assert full.finish_reason is FinishReason.LENGTH


@EACH_CACHE
async def test_cancelled_request_frees_its_slots(loaded: PreTrainedModel, static_cache: str) -> None:
    registry = CollectorRegistry()
    async with running(loaded, static_cache=static_cache, max_slots=2, registry=registry) as engine:
        both = asyncio.create_task(engine.generate(request(LONG, num_samples=2), deadline=None))
        await until(lambda: registry.get_sample_value("fairlead_policy_slots_used") == 2)
        stream = engine.stream(request(LONG), deadline=None)
        waiting = asyncio.create_task(anext(stream))
        await until(lambda: registry.get_sample_value("fairlead_policy_waiting_sequences") == 1)
        both.cancel()
        index, delta = await waiting
        assert (index, len(delta.token_ids)) == (0, 1)
        await stream.aclose()
        await until(lambda: registry.get_sample_value("fairlead_policy_slots_used") == 0)
        before = registry.get_sample_value("fairlead_policy_tokens_total")
        (completion,) = await engine.generate(request(), deadline=None)
        assert registry.get_sample_value("fairlead_policy_tokens_total") == before + 12
        assert len(completion.token_ids) == 12


async def test_deadline_ends_running_and_waiting_requests(loaded: PreTrainedModel) -> None:
    registry = CollectorRegistry()
    async with running(loaded, max_slots=1, registry=registry) as engine:
        for deadline in (time.monotonic() - 1, time.monotonic() + 0.02):
            with pytest.raises(DeadlineExceeded):
                await engine.generate(request(LONG, num_samples=60), deadline=deadline)
        await until(lambda: registry.get_sample_value("fairlead_policy_slots_used") == 0)


async def test_full_queue_refuses_with_delay(loaded: PreTrainedModel) -> None:
    registry = CollectorRegistry()
    async with running(loaded, max_slots=1, max_queue_tokens=200, registry=registry) as engine:
        tasks = [asyncio.create_task(engine.generate(request(LONG), deadline=None))]
        await until(lambda: registry.get_sample_value("fairlead_policy_slots_used") == 1)
        tasks += [asyncio.create_task(engine.generate(request(LONG), deadline=None))]
        await until(lambda: registry.get_sample_value("fairlead_policy_waiting_sequences") == 1)
        with pytest.raises(
            Overloaded, match="128 tokens are waiting, 128 more exceed the limit of 200"
        ) as refused:
            await engine.generate(request(LONG), deadline=None)
        assert 0.1 <= refused.value.retry_after_seconds <= 30
        for task in tasks:
            assert len((await task)[0].token_ids) == CONTEXT - 3


async def test_engine_is_unavailable_without_weights_and_after_close(loaded: PreTrainedModel) -> None:
    async with running(loaded, initial=None) as engine:
        assert engine.version is None
        with pytest.raises(Unavailable, match="no weights yet"):
            await engine.generate(request(), deadline=None)
        with pytest.raises(Unavailable, match="no weights yet"):
            _ = engine.info
    async with running(loaded) as engine:
        task = asyncio.create_task(engine.generate(request(LONG, num_samples=60), deadline=None))
        await until(lambda: bool(engine._thread._request_of))
        await asyncio.to_thread(engine.close)
        with pytest.raises(Unavailable, match="stopping"):
            await task
        with pytest.raises(Unavailable, match="stopping"):
            await engine.generate(request(), deadline=None)


async def test_failed_forward_passes_fail_requests_and_then_the_engine(
    loaded: PreTrainedModel,
) -> None:
    async with running(loaded, max_slots=2) as engine:
        broken = asyncio.create_task(engine.wait_failed())
        outside = (1, VOCABULARY_SIZE + 5)  # an id that the servicer would refuse
        for _ in range(2):
            with pytest.raises(IndexError):
                await engine.generate(request(prompt=outside), deadline=None)
        assert await engine.generate(request(), deadline=None)
        assert not broken.done()
        for _ in range(3):
            with pytest.raises(IndexError):
                await engine.generate(request(prompt=outside), deadline=None)
        with pytest.raises(IndexError):
            await broken
        with pytest.raises(Unavailable):
            await engine.generate(request(), deadline=None)
