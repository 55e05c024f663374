"""Swaps of the embedded engine, beyond the contract of engines: mixed caches, waiting, tied weights, NaN."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from fairlead.types import (
    VersionSpan,
    WeightVersion,
)
from tests.tiny import tiny_causal_lm
from tests.unit.services.policy.policy_world import (
    EACH_CACHE,
    LONG,
    V0,
    V1,
    V2,
    model_without_end,
    new_weights,
    request,
    running,
)
from tests.waiting import until


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return model_without_end(tmp_path_factory.mktemp("model"))


@EACH_CACHE
async def test_swap_during_a_sample_is_in_its_spans(
    loaded: PreTrainedModel, tmp_path: Path, static_cache: str
) -> None:
    weights = new_weights(tmp_path / "1-1", loaded, seed=1)
    async with running(loaded, static_cache=static_cache) as engine:
        versions: list[WeightVersion] = []
        mixed = []
        loading: asyncio.Task[None] | None = None
        async for _, delta in engine.stream(request(LONG), deadline=None):
            versions += [span.version for span in delta.version_spans]
            mixed.append(delta.mixed_cache)
            loading = loading or asyncio.create_task(engine.load(V1, weights))
        assert loading is not None
        await loading
        assert engine.version == V1
        first = versions.index(V1) if V1 in versions else len(versions)
        assert versions == [V0] * first + [V1] * (len(versions) - first)
        assert mixed == [False] * first + [True] * (len(versions) - first)
        (fresh,) = await engine.generate(request(), deadline=None)
        assert fresh.version_spans == (VersionSpan(V1, 0, 12),)
        assert not fresh.mixed_cache


@EACH_CACHE
async def test_with_finish_before_swap_no_sequence_spans_two_versions(
    loaded: PreTrainedModel, tmp_path: Path, static_cache: str
) -> None:
    folders = [new_weights(tmp_path / f"1-{u}", loaded, seed=u) for u in (1, 2)]
    registry = CollectorRegistry()
    async with running(
        loaded, static_cache=static_cache, max_slots=4, finish_before_swap=True, registry=registry
    ) as engine:
        long = [asyncio.create_task(engine.generate(request(LONG), deadline=None)) for _ in range(3)]
        await until(lambda: (registry.get_sample_value("fairlead_policy_slots_used") or 0) > 0)
        loading = asyncio.create_task(engine.load(V1, folders[0]))
        answers = [
            asyncio.create_task(engine.generate(request(prompt=(1, 7 + i)), deadline=None)) for i in range(20)
        ]
        newer = asyncio.create_task(engine.generate(request(min_version=V1), deadline=time.monotonic() + 60))
        completions = [c for group in await asyncio.gather(*long, *answers, newer) for c in group]
        await loading
        await engine.load(V2, folders[1])
        completions += await engine.generate(request(), deadline=None)
    assert all(len(c.version_spans) == 1 and not c.mixed_cache for c in completions)
    assert completions[-2].version_spans[0].version == V1
    assert completions[-1].version_spans[0].version == V2


async def test_tied_weights_may_be_stored_under_either_name(tmp_path: Path) -> None:
    tied = AutoModelForCausalLM.from_pretrained(
        tiny_causal_lm(tmp_path / "tied", tie_word_embeddings=True)
    ).eval()
    for update, missing in enumerate(("lm_head.weight", "model.embed_tokens.weight"), start=1):
        state = {name: tensor + 0.01 for name, tensor in tied.state_dict().items() if name != missing}
        target = tmp_path / f"1-{update}"
        target.mkdir()
        save_file(state, target / "model.safetensors")
        async with running(tied) as engine:
            await engine.load(WeightVersion(1, update), target)
            model = engine._model
            assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
            expected = tied.get_input_embeddings().weight + 0.01
            assert torch.equal(model.get_input_embeddings().weight, expected)


@EACH_CACHE
async def test_nan_weights_fail_requests_until_valid_weights_arrive(
    loaded: PreTrainedModel, tmp_path: Path, static_cache: str
) -> None:
    for update, factor in ((1, torch.nan), (2, 1.0)):
        target = tmp_path / f"1-{update}"
        target.mkdir()
        save_file({n: t * factor for n, t in loaded.state_dict().items()}, target / "model.safetensors")
    async with running(loaded, static_cache=static_cache, max_slots=3) as engine:
        before = await engine.generate(request(num_samples=3), deadline=None)
        await engine.load(V1, tmp_path / "1-1")
        with pytest.raises(FloatingPointError, match="under weights 1-1"):
            await engine.generate(request(num_samples=3), deadline=None)
        await engine.load(V2, tmp_path / "1-2")
        after = await engine.generate(request(num_samples=3), deadline=None)
        assert [c.token_ids for c in after] == [c.token_ids for c in before]
