"""What every engine of the policy service must do: the contract of services/policy/engine.py as tests.

A test file imports all of them, and has a fixture `world` with an engine on the model of `engine_world.tiny`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fairlead.errors import CorruptWeights, DeadlineExceeded, Overloaded, StaleWeights, Unavailable
from fairlead.types import Completion, FinishReason, VersionSpan, WeightVersion
from tests.engine_world import (
    CONTEXT,
    PROMPT,
    QUEUE_TOKENS,
    SLOTS,
    TOLERANCE,
    V0,
    EngineWorld,
    probe,
    request,
    version_folder,
)
from tests.waiting import until

USED = "fairlead_policy_slots_used"
WAITING = "fairlead_policy_waiting_sequences"
LONG = CONTEXT - len(PROMPT)


async def answer(world: EngineWorld, **fields: object) -> Completion:
    """Return the completion of a request with one sample."""
    return (await world.engine.generate(request(**fields), deadline=None))[0]


def start(world: EngineWorld, **fields: object) -> asyncio.Task[tuple[Completion, ...]]:
    return asyncio.create_task(world.engine.generate(request(**fields), deadline=None))


async def cancel(*tasks: asyncio.Task) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.3},
        {"top_p": 0.8},
        {"top_k": 20},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 50},
        {"temperature": 0.0},
    ],
    ids=str,
)
async def test_logprobs_are_those_of_the_sampled_distribution(world: EngineWorld, sampling):
    asked = request(samples=8, **sampling)
    completions = await world.engine.generate(asked, deadline=None)
    found = [world.largest_difference(each, asked.sampling) for each in completions]
    print(f"\n| float32 | {sampling} | {max(found):.1e} |")  # noqa: T201
    assert max(found) <= TOLERANCE


async def test_greedy_and_sampled_requests_share_a_batch(world: EngineWorld):
    settings = [{"temperature": 0.0}, {"temperature": 0.7, "top_k": 5}, {}]
    single = [await answer(world, **each) for each in settings]
    together = await asyncio.gather(*(answer(world, **each) for each in settings))
    for one, each, before in zip(together, settings, single, strict=True):
        assert one.token_ids == before.token_ids
        assert world.largest_difference(one, request(**each).sampling) <= TOLERANCE


async def test_seed_and_index_decide_a_sample(world: EngineWorld):
    first, again, other = [
        await world.engine.generate(request(samples=4, seed=seed), deadline=None) for seed in (3, 3, 4)
    ]
    assert [each.token_ids for each in first] == [each.token_ids for each in again]
    assert (await answer(world, seed=3)).token_ids == first[0].token_ids
    assert len({each.token_ids for each in (*first, *other)}) == 8


async def test_more_samples_than_slots_are_all_answered_in_order(world: EngineWorld):
    many = await world.engine.generate(request(samples=3 * SLOTS + 1, max_new_tokens=5), deadline=None)
    few = await world.engine.generate(request(samples=4, max_new_tokens=5), deadline=None)
    assert len(many) == 3 * SLOTS + 1
    assert [each.token_ids for each in many[:4]] == [each.token_ids for each in few]


async def test_stop_ids_stop_strings_and_lengths_end_a_completion(world: EngineWorld):
    whole = await answer(world)
    assert (whole.finish_reason, len(whole.token_ids)) == (FinishReason.LENGTH, 32)
    stop_id = whole.token_ids[9]
    by_id = await answer(world, stop_token_ids=(stop_id,))
    end_by_id = whole.token_ids.index(stop_id) + 1
    # From the end of one token into the next.
    words = whole.text.split()
    stop = f"{words[4][-1]} {words[5]}"
    by_text = await answer(world, stop_strings=("never", stop))
    end_by_text = next(count for count in range(1, 33) if stop in " ".join(words[:count]))
    for stopped, end in ((by_id, end_by_id), (by_text, end_by_text)):
        assert stopped.token_ids == whole.token_ids[:end]
        assert stopped.text == " ".join(words[:end])
        assert stopped.logprobs == pytest.approx(whole.logprobs[:end], abs=1e-5)
        assert stopped.finish_reason is FinishReason.STOP
    longest = await answer(world, max_new_tokens=10_000)
    assert (longest.finish_reason, len(longest.token_ids)) == (FinishReason.LENGTH, LONG)


@pytest.mark.parametrize("stops", [False, True])
async def test_stream_adds_up_to_the_completion(world: EngineWorld, stops: bool):
    whole = await answer(world)
    asked = request(samples=2, stop_strings=(whole.text.split()[20],) if stops else ())
    completions = await world.engine.generate(asked, deadline=None)
    parts: list[list[Completion]] = [[], []]
    async for index, delta in world.engine.stream(asked, deadline=None):
        parts[index].append(delta)
    version = world.engine.version
    for deltas, completion in zip(parts, completions, strict=True):
        assert tuple(token for delta in deltas for token in delta.token_ids) == completion.token_ids
        assert "".join(delta.text for delta in deltas) == completion.text
        assert [value for delta in deltas for value in delta.logprobs] == pytest.approx(
            completion.logprobs, abs=1e-5
        )
        assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason is completion.finish_reason
        for delta in deltas:
            assert delta.version_spans == (VersionSpan(version, 0, len(delta.token_ids)),)
    assert (parts[0][-1].finish_reason is FinishReason.STOP) == stops


async def test_deadline_ends_running_and_waiting_requests(world: EngineWorld):
    for seconds in (-1.0, 0.05):
        with pytest.raises(DeadlineExceeded):
            await world.engine.generate(
                request(max_new_tokens=200, samples=40), deadline=time.monotonic() + seconds
            )
    stream = world.engine.stream(request(max_new_tokens=200, samples=40), deadline=time.monotonic() + 0.05)
    with pytest.raises(DeadlineExceeded):
        async for _ in stream:
            pass
    await until(lambda: world.value(USED) == 0)


async def test_request_for_newer_weights_waits_for_them_or_fails(world: EngineWorld):
    newest = world.engine.version or V0
    newer = replace(request(), min_version=world.next_version())
    deadline = time.monotonic() + 2
    with pytest.raises(
        StaleWeights, match=f"needs weights {newer.min_version} or newer; {newest} are in use"
    ):
        await world.engine.generate(newer, deadline=deadline)
    assert time.monotonic() < deadline  # early enough for the error to arrive
    waiting = asyncio.create_task(world.engine.generate(newer, deadline=time.monotonic() + 60))
    assert {span.version for span in (await answer(world)).version_spans} == {newest}
    assert not waiting.done()
    version = await world.load(seed=200)
    (completion,) = await waiting
    assert completion.version_spans == (VersionSpan(version, 0, 32),)
    assert world.largest_difference(completion) <= TOLERANCE


async def test_cancelled_requests_and_closed_streams_free_their_slots(world: EngineWorld):
    running = start(world, max_new_tokens=LONG, samples=SLOTS)
    await until(lambda: world.value(USED) == SLOTS)
    stream = world.engine.stream(request(max_new_tokens=LONG), deadline=None)
    waiting = asyncio.create_task(anext(stream))
    await until(lambda: world.value(WAITING) == 1)
    await cancel(running)
    index, delta = await waiting
    assert (index, len(delta.token_ids)) == (0, 1)
    await stream.aclose()
    await until(lambda: world.value(USED) == world.value(WAITING) == 0)
    assert len((await answer(world)).token_ids) == 32


async def test_full_queue_refuses_with_a_delay(world: EngineWorld):
    running = start(world, max_new_tokens=LONG, samples=SLOTS)
    await until(lambda: world.value(USED) == SLOTS)
    fits = QUEUE_TOKENS // CONTEXT
    waiting = start(world, max_new_tokens=LONG, samples=fits)
    await until(lambda: world.value(WAITING) == fits)
    message = f"{fits * CONTEXT} tokens are waiting, {CONTEXT} more exceed the limit of {QUEUE_TOKENS}"
    with pytest.raises(Overloaded, match=message) as refused:
        await answer(world, max_new_tokens=LONG)
    assert 0.1 <= refused.value.retry_after_seconds <= 30
    await cancel(running, waiting)
    await until(lambda: world.value(USED) == world.value(WAITING) == 0)


async def test_exclusive_request_runs_after_those_before_it_and_before_those_after(world: EngineWorld):
    ended: list[str] = []
    starts: list[float] = []

    def ends_as(name: str, **fields: object) -> asyncio.Task[tuple[Completion, ...]]:
        task = start(world, **fields)
        task.add_done_callback(lambda _: ended.append(name))
        return task

    before = [ends_as("before", seed=number) for number in range(4)]
    await until(lambda: world.value(USED) > 0)
    exclusive = asyncio.create_task(
        world.engine.generate(
            replace(request(), exclusive=True),
            deadline=None,
            on_start=lambda: starts.append(time.monotonic()),
        )
    )
    exclusive.add_done_callback(lambda _: ended.append("exclusive"))
    await asyncio.sleep(0)
    after = ends_as("after", max_new_tokens=1)
    await asyncio.gather(*before, exclusive, after)
    assert ended == ["before"] * 4 + ["exclusive", "after"]
    assert len(starts) == 1


@pytest.mark.parametrize("others", [0, 1])
async def test_cancelled_exclusive_request_blocks_nothing(world: EngineWorld, others: int):
    running = [start(world, max_new_tokens=LONG) for _ in range(others)]
    await until(lambda: world.value(USED) == others)
    gone = asyncio.create_task(
        world.engine.generate(replace(request(max_new_tokens=LONG), exclusive=True), deadline=None)
    )
    await until(lambda: world.value(USED) + world.value(WAITING) == others + 1)
    await cancel(gone)
    async with asyncio.timeout(60):
        await answer(world)
        await asyncio.gather(*running)


async def test_swap_during_a_stream_is_in_its_spans(world: EngineWorld):
    versions: list[WeightVersion] = []
    before = world.engine.version
    loading: asyncio.Task[WeightVersion] | None = None
    async for _, delta in world.engine.stream(request(max_new_tokens=LONG), deadline=None):
        versions += [span.version for span in delta.version_spans]
        if loading is None:
            loading = asyncio.create_task(world.load(seed=201))
    assert loading is not None
    after = await loading
    cut = versions.index(after) if after in versions else LONG
    assert versions == [before] * cut + [after] * (LONG - cut)
    fresh = await answer(world)
    assert fresh.version_spans == (VersionSpan(after, 0, 32),)
    assert not fresh.mixed_cache
    assert world.largest_difference(fresh) <= TOLERANCE
    assert world.engine.info.weight_version == after


async def test_older_weights_are_ignored(world: EngineWorld):
    newest = await world.load(seed=202)
    folder = version_folder(world.root / f"older-than-{newest}", world.model)
    for version in (WeightVersion(0, 999), newest):
        await world.engine.load(version, folder, probe=probe(world.model))
        assert world.engine.version == newest
    assert world.largest_difference(await answer(world)) <= TOLERANCE


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "truncated|its header says|cannot be read"),
        ("shape", "has shape"),
        ("missing", "lacks"),
        ("unknown", "does not have"),
    ],
)
async def test_weights_that_do_not_fit_are_refused(world: EngineWorld, damage: str, message: str):
    in_use = world.engine.version
    folder = version_folder(world.root / f"{damage}-{in_use}", world.model)
    file = folder / "model-00001.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        changed: dict[str, dict[str, torch.Tensor]] = {
            "shape": {name: tensors[name][:-1].contiguous()},
            "missing": {},
            "unknown": {name: tensors[name], "extra": tensors[name].clone()},
        }
        del tensors[name]
        save_file(tensors | changed[damage], file)
    running = start(world, max_new_tokens=LONG)
    await until(lambda: world.value(USED) == 1)
    with pytest.raises(CorruptWeights, match=message):
        await world.engine.load(world.next_version(), folder, probe=probe(world.model))
    (completion,) = await running
    assert completion.version_spans == (VersionSpan(in_use, 0, LONG),)
    assert world.largest_difference(completion) <= TOLERANCE
    assert world.engine.version == in_use


async def test_closed_engine_is_unavailable(world: EngineWorld):
    """The last test: no other uses the engine after it."""
    running = start(world, max_new_tokens=LONG, samples=SLOTS)
    waiting = start(world, max_new_tokens=LONG)
    await until(lambda: world.value(USED) == SLOTS)
    await asyncio.to_thread(world.engine.close)
    for request_of_before in (running, waiting):
        with pytest.raises(Unavailable, match="stopping"):
            await request_of_before
    with pytest.raises(Unavailable, match="stopping"):
        await answer(world)
    await asyncio.to_thread(world.engine.close)
