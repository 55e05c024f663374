"""vLLM as an engine, in float32: log-probs, seeds, swaps, bad versions, ends of requests."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from fairlead.errors import (
    CorruptWeights,
    DeadlineExceeded,
    EngineFailed,
    InvalidInput,
    Overloaded,
    StaleWeights,
    Unavailable,
)
from fairlead.types import FinishReason, GenerationRequest, SamplingParams, WeightVersion
from tests.vllm.world import CONTEXT, PROMPT, differences, probe, request, serving, tiny, version_folder
from tests.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    # Of vLLM's own imports.
    pytest.mark.filterwarnings("ignore"),
]

V0 = WeightVersion(0, 0)
TOLERANCE = 1e-4


class World:
    """One engine, the models of its versions, and a counter of versions."""

    def __init__(self, engine, registry: CollectorRegistry, model: PreTrainedModel, root: Path) -> None:
        self.engine = engine
        self.registry = registry
        self.models = {V0: model}
        self.root = root

    def next_version(self) -> WeightVersion:
        return WeightVersion(1, max(self.models).update + 1)

    def another_model(self, seed: int) -> PreTrainedModel:
        """Return a model with all weights changed, also the tied ones."""
        model = copy.deepcopy(self.models[V0])
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model

    async def load(self, seed: int) -> WeightVersion:
        version = self.next_version()
        model = self.another_model(seed)
        folder = version_folder(self.root / str(version), model)
        self.models[version] = model
        await self.engine.load(version, folder, probe=probe(model))
        return version

    def value(self, name: str) -> float:
        return self.registry.get_sample_value(name) or 0.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    root = tmp_path_factory.mktemp("vllm")
    model = tiny(root / "model", seed=0)
    registry = CollectorRegistry()
    async with serving(root / "model", registry) as engine:
        yield World(engine, registry, model, root)


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
async def test_logprobs_are_those_of_the_sampled_distribution(world: World, sampling, record_property):
    asked = request(samples=8, **sampling)
    completions = await world.engine.generate(asked, deadline=None)
    found = torch.cat([differences(world.models, each, sampling=asked.sampling) for each in completions])
    record_property("max", float(found.max()))
    print(f"\n| float32 | {sampling} | {found.max():.1e} | {found.mean():.1e} |")  # noqa: T201
    assert found.max() <= TOLERANCE


async def test_greedy_and_sampled_requests_share_a_batch(world: World):
    asked = [request(temperature=0.0), request(temperature=0.7, top_k=5), request()]
    single = [(await world.engine.generate(each, deadline=None))[0] for each in asked]
    together = await asyncio.gather(*(world.engine.generate(each, deadline=None) for each in asked))
    for one, sampling, before in zip(together, asked, single, strict=True):
        assert one[0].token_ids == before.token_ids
        assert differences(world.models, one[0], sampling=sampling.sampling).max() <= TOLERANCE


async def test_seeds_decide_the_samples(world: World):
    first, again, other = [
        await world.engine.generate(request(samples=4, seed=seed), deadline=None) for seed in (3, 3, 4)
    ]
    one = await world.engine.generate(request(samples=1, seed=3), deadline=None)
    assert [each.token_ids for each in first] == [each.token_ids for each in again]
    assert one[0].token_ids == first[0].token_ids
    assert len({each.token_ids for each in (*first, *other)}) == 8


async def test_stop_ids_stop_strings_and_lengths(world: World):
    whole = (await world.engine.generate(request(), deadline=None))[0]
    assert whole.finish_reason is FinishReason.LENGTH
    assert len(whole.token_ids) == 32
    stop_id = whole.token_ids[9]
    end = whole.token_ids.index(stop_id) + 1
    by_id = (await world.engine.generate(request(stop_token_ids=(stop_id,)), deadline=None))[0]
    by_text = (
        await world.engine.generate(request(stop_strings=(whole.text.split()[end - 1],)), deadline=None)
    )[0]
    for stopped in (by_id, by_text):
        assert stopped.token_ids == whole.token_ids[:end]
        assert stopped.logprobs == pytest.approx(whole.logprobs[:end], abs=1e-5)
        assert stopped.finish_reason is FinishReason.STOP
    longest = (await world.engine.generate(request(max_new_tokens=10_000), deadline=None))[0]
    assert len(longest.token_ids) == CONTEXT - len(PROMPT)


async def test_stream_yields_the_tokens_of_generate(world: World):
    whole = await world.engine.generate(request(samples=2), deadline=None)
    parts: list[list] = [[], []]
    async for index, delta in world.engine.stream(request(samples=2), deadline=None):
        parts[index].append(delta)
    for deltas, completion in zip(parts, whole, strict=True):
        assert tuple(token for delta in deltas for token in delta.token_ids) == completion.token_ids
        assert "".join(delta.text for delta in deltas) == completion.text
        assert deltas[-1].finish_reason is FinishReason.LENGTH


async def test_twenty_swaps_of_tied_weights(world: World):
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


async def test_swap_with_sequences_in_flight(world: World):
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


async def test_prompt_cached_under_old_weights_is_computed_again(world: World):
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
    world: World, tmp_path: Path, damage: str, message: str
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
    world: World, tmp_path: Path
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


async def test_requests_end_at_deadlines_when_cancelled_and_when_refused(world: World):
    engine = world.engine
    with pytest.raises(DeadlineExceeded):
        await engine.generate(request(max_new_tokens=200, samples=40), deadline=time.monotonic() + 0.05)
    newer = GenerationRequest("r", PROMPT, SamplingParams(), min_version=WeightVersion(9, 0))
    with pytest.raises(StaleWeights, match="9-0"):
        await engine.generate(newer, deadline=time.monotonic() + 0.3)
    cancelled = asyncio.create_task(engine.generate(request(max_new_tokens=230, samples=8), deadline=None))
    await until(lambda: world.value("fairlead_policy_slots_used") == 8)
    cancelled.cancel()
    await until(lambda: world.value("fairlead_policy_slots_used") == 0)
    with pytest.raises(InvalidInput, match=r"sampling.temperature: got 0.001"):
        await engine.generate(request(temperature=0.001), deadline=None)
    many = [
        asyncio.create_task(engine.generate(request(max_new_tokens=200, samples=16), deadline=None))
        for _ in range(3)
    ]
    with pytest.raises(Overloaded):
        await asyncio.gather(*many)
    for task in many:
        task.cancel()
    await asyncio.gather(*many, return_exceptions=True)


async def test_exclusive_request_runs_without_others(world: World):
    started: list[float] = []
    others = [asyncio.create_task(world.engine.generate(request(seed=n), deadline=None)) for n in range(4)]
    exclusive = GenerationRequest("r", PROMPT, SamplingParams(max_new_tokens=8), exclusive=True)
    task = asyncio.create_task(
        world.engine.generate(
            exclusive,
            deadline=None,
            on_start=lambda: started.append(world.value("fairlead_policy_slots_used")),
        )
    )
    await asyncio.gather(task, *others)
    assert len(started) == 1
    assert all(other.done() for other in others)


async def test_death_of_a_worker_ends_the_engine(world: World):
    """The last test of this file: the engine is dead after it."""
    import psutil

    running = asyncio.create_task(world.engine.generate(request(max_new_tokens=230), deadline=None))
    await until(lambda: world.value("fairlead_policy_slots_used") == 1)
    for child in psutil.Process().children(recursive=True):
        if "VllmWorker" in child.name() or "VLLM::Worker" in " ".join(child.cmdline()):
            child.kill()
    with pytest.raises(EngineFailed, match="ended unexpectedly"):
        async with asyncio.timeout(60):
            await world.engine.wait_failed()
    with pytest.raises(Unavailable):
        await running
