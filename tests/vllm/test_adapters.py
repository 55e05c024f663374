"""LoRA with vLLM: versions are adapters, which are used next to each other and never replace one another."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file
from transformers import PreTrainedModel

from fairlead import config
from fairlead.errors import CorruptWeights
from fairlead.nn import adapters
from fairlead.transports.weights.base import Adapter
from fairlead.types import WeightVersion
from tests.engine_world import differences, probe, request, tiny, version_folder
from tests.vllm.world import serving
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LORA = {"rank": 4, "alpha": 8.0}


def with_adapter(folder: Path, *, seed: int) -> PreTrainedModel:
    """Return the model in a folder with random adapters."""
    from fairlead.nn.loading import load_causal_lm

    section = config.load(overrides={f"ppo.lora.{name}": str(value) for name, value in LORA.items()}).ppo.lora
    model = load_causal_lm(str(folder), config.load(overrides={"policy.device": "cpu"}).policy)
    adapters.add(model, section, base=str(folder), field="ppo.lora", seed=0, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.tensors(model).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


async def test_versions_are_adapters(tmp_path: Path):
    base = tmp_path / "model"
    tiny(base, seed=0)
    registry = CollectorRegistry()
    models: dict[WeightVersion, PreTrainedModel] = {}
    async with serving(base, registry, ppo={"lora": LORA}) as engine:

        async def load(update: int) -> WeightVersion:
            version = WeightVersion(1, update)
            models[version] = model = with_adapter(base, seed=update)
            folder = tmp_path / str(version)
            folder.mkdir()
            tensors = {name: tensor.detach() for name, tensor in adapters.tensors(model).items()}
            save_file(tensors, folder / "model-00001.safetensors")
            adapter = Adapter(adapters.fingerprint(str(base)), adapters.config(model))
            await engine.load(version, folder, adapter=adapter, probe=probe(model))
            return version

        before = await load(1)
        running = asyncio.create_task(engine.generate(request(max_new_tokens=200), deadline=None))
        await until(lambda: registry.get_sample_value("fairlead_policy_slots_used") == 1)
        for update in range(2, 7):
            version = await load(update)
            for completion in await engine.generate(request(samples=4, seed=update), deadline=None):
                assert [span.version for span in completion.version_spans] == [version]
                assert differences(models, completion).max() <= 1e-4
        completion = (await running)[0]
        assert [span.version for span in completion.version_spans] == [before]
        assert differences(models, completion).max() <= 1e-4
        with pytest.raises(CorruptWeights, match="holds a whole model"):
            await engine.load(WeightVersion(1, 9), version_folder(tmp_path / "whole", models[before]))
        assert engine.version == version
