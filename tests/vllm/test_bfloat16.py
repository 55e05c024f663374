"""vLLM in bfloat16: how far its log-probs are from ours, and swaps that wait for running samples."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import AutoModelForCausalLM

from fairlead.errors import CorruptWeights
from fairlead.types import WeightVersion
from tests.engine_world import differences, probe, request, tiny, version_folder
from tests.vllm.world import serving
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

V0, V1, V2 = WeightVersion(0, 0), WeightVersion(1, 1), WeightVersion(1, 2)


async def test_bfloat16_and_swaps_that_wait(tmp_path: Path):
    exact = tiny(tmp_path / "model", seed=0)
    rounded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16).eval()
    other = tiny(tmp_path / "other", seed=1)
    registry = CollectorRegistry()
    settings = {"policy": {"dtype": "bfloat16"}, "ppo": {"max_staleness": 0}}
    async with serving(tmp_path / "model", registry, **settings) as engine:
        # Both differ from vLLM by the rounding of bfloat16; the mean is the figure to watch, not the largest.
        for sampling in ({}, {"temperature": 0.7}, {"top_p": 0.8}):
            completions = await engine.generate(request(samples=8, **sampling), deadline=None)
            asked = request(**sampling).sampling
            for name, model in (("float32", exact), ("bfloat16", rounded)):
                found = torch.cat([differences({V0: model}, each, sampling=asked) for each in completions])
                # A nucleus can differ by a token.
                same = found[found.isfinite()]
                print(f"\n| vLLM bfloat16 − {name} | {sampling} | {same.max():.2g} | {same.mean():.2g} |")  # noqa: T201
                assert same.mean() < 0.1
        running = asyncio.create_task(engine.generate(request(max_new_tokens=200), deadline=None))
        await until(lambda: registry.get_sample_value("fairlead_policy_slots_used") == 1)
        loading = asyncio.create_task(
            engine.load(V1, version_folder(tmp_path / "v1", other), probe=probe(other, dtype="bfloat16"))
        )
        await asyncio.sleep(0)
        later = asyncio.create_task(engine.generate(request(seed=4), deadline=None))
        await loading
        assert {span.version for span in (await running)[0].version_spans} == {V0}
        assert [span.version for span in (await later)[0].version_spans] in ([V0], [V1])
        with pytest.raises(CorruptWeights, match="in the mean"):
            await engine.load(
                V2, version_folder(tmp_path / "v2", exact), probe=probe(other, dtype="bfloat16")
            )
        assert engine.version == V1
