"""vLLM beyond the contract of engines, in float32: swaps, bad versions, the death of its processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file

from fairlead.errors import (
    CorruptWeights,
    EngineFailed,
    InvalidInput,
    ReplicaLost,
    Unavailable,
)
from tests.engine_world import TOLERANCE, V0, EngineWorld, differences, probe, request, tiny, version_folder
from tests.vllm.world import serving
from tests.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    # Of vLLM's own imports.
    pytest.mark.filterwarnings("ignore"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineWorld]:
    root = tmp_path_factory.mktemp("vllm")
    model = tiny(root / "model", seed=0)
    registry = CollectorRegistry()
    async with serving(root / "model", registry) as engine:
        yield EngineWorld(engine, model, registry, root)


async def test_twenty_swaps_of_tied_weights(world: EngineWorld):
    worst = 0.0
    for seed in range(1, 21):
        version = await world.load(seed)
        for completion in await world.engine.generate(request(samples=4, seed=seed), deadline=None):
            assert {span.version for span in completion.version_spans} == {version}
            worst = max(worst, float(differences(world.models, completion).max()))
    print(f"\nlargest difference over 20 swaps: {worst:.1e}")  # noqa: T201
    assert worst <= TOLERANCE
    assert world.engine.version == version
    assert world.value("fairlead_policy_swaps_total") >= 20


async def test_swap_with_sequences_in_flight(world: EngineWorld):
    before = world.engine.version
    prompts = [tuple(range(start, start + 20)) for start in range(5, 9)]
    running = [
        asyncio.create_task(world.engine.generate(request(prompt=prompt, max_new_tokens=200), deadline=None))
        for prompt in prompts
    ]
    deltas = []

    async def stream() -> None:
        async for _, delta in world.engine.stream(request(max_new_tokens=200, seed=9), deadline=None):
            deltas.append(delta)

    streaming = asyncio.create_task(stream())
    await until(lambda: len(deltas) >= 40)
    after = await world.load(101)
    completions = [(await task)[0] for task in running]
    await streaming
    for prompt, completion in zip(prompts, completions, strict=True):
        assert [span.version for span in completion.version_spans] == [before, after]
        assert not completion.mixed_cache
        assert differences(world.models, completion, prompt=prompt).max() <= TOLERANCE
    versions = [delta.version_spans[0].version for delta in deltas]
    cut = versions.index(after)
    assert versions == [before] * cut + [after] * (200 - cut)
    assert cut >= 40


async def test_prompt_cached_under_old_weights_is_computed_again(world: EngineWorld):
    prompt = tuple(5 + index % 50 for index in range(200))
    await world.engine.generate(request(prompt=prompt), deadline=None)
    version = await world.load(102)
    completion = (await world.engine.generate(request(prompt=prompt), deadline=None))[0]
    assert completion.version_spans[0].version == version
    assert differences(world.models, completion, prompt=prompt).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "truncated|its header says"),
        ("shape", "has shape"),
        ("missing", "lacks"),
        ("unknown", "does not have"),
        ("type", "has type I64"),
    ],
)
async def test_broken_version_is_refused_before_the_pause(
    world: EngineWorld, tmp_path: Path, damage: str, message: str
):
    in_use = world.engine.version
    folder = version_folder(tmp_path / "v", world.models[V0])
    file = folder / "model-00001.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        changed = {
            "shape": {name: tensors[name][:-1].contiguous()},
            "missing": {},
            "unknown": {name: tensors[name], "extra": tensors[name].clone()},
            "type": {name: tensors[name].long()},
        }[damage]
        del tensors[name]
        save_file(tensors | changed, file)
    paused = world.value("fairlead_policy_swap_seconds_count")
    steps_of_a_running_sample = asyncio.create_task(
        world.engine.generate(request(max_new_tokens=200), deadline=None)
    )
    with pytest.raises(CorruptWeights, match=message):
        await world.engine.load(world.next_version(), folder, probe=probe(world.models[V0]))
    completion = (await steps_of_a_running_sample)[0]
    assert {span.version for span in completion.version_spans} == {in_use}
    assert differences(world.models, completion).max() <= TOLERANCE
    assert world.value("fairlead_policy_swap_seconds_count") == paused
    assert world.engine.version == in_use


async def test_version_that_computes_something_else_is_replaced_by_the_one_before(
    world: EngineWorld, tmp_path: Path
):
    """The files fit the model, but the trainer's weights are others: only the probe notices."""
    in_use = world.engine.version
    shutil_target = world.root / str(in_use)
    for file in shutil_target.glob("*") if in_use != V0 else ():
        file.unlink()  # the store may delete the version in use
    running = asyncio.create_task(world.engine.generate(request(max_new_tokens=230), deadline=None))
    await until(lambda: world.value("fairlead_policy_slots_used") == 1)
    folder = version_folder(tmp_path / "v", world.another_model(7))
    with pytest.raises(CorruptWeights, match="log-probs of the probe differ"):
        await world.engine.load(world.next_version(), folder, probe=probe(world.another_model(8)))
    with pytest.raises(Unavailable):
        await running
    assert world.engine.version == in_use
    completion = (await world.engine.generate(request(), deadline=None))[0]
    assert completion.version_spans[0].version == in_use
    assert differences(world.models, completion).max() <= TOLERANCE
    async for _, delta in world.engine.stream(request(), deadline=None):
        assert delta.version_spans[0].version == in_use


async def test_temperature_that_vllm_would_replace_is_refused(world: EngineWorld):
    with pytest.raises(InvalidInput, match=r"sampling.temperature: got 0.001"):
        await world.engine.generate(request(temperature=0.001), deadline=None)


async def test_death_of_a_worker_ends_the_engine(world: EngineWorld):
    """The last test of this file: the engine is dead after it."""
    import psutil

    running = asyncio.create_task(world.engine.generate(request(max_new_tokens=230), deadline=None))
    await until(lambda: world.value("fairlead_policy_slots_used") == 1)
    for child in psutil.Process().children(recursive=True):
        # An engine that was closed before may not be reaped yet.
        with contextlib.suppress(psutil.ZombieProcess):
            if "VllmWorker" in child.name() or "VLLM::Worker" in " ".join(child.cmdline()):
                child.kill()
    with pytest.raises(EngineFailed, match="ended unexpectedly"):
        async with asyncio.timeout(60):
            await world.engine.wait_failed()
    with pytest.raises(ReplicaLost):  # so that a request that kills vLLM again and again is given up
        await running
