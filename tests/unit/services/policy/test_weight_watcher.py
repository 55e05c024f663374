"""The watcher with a real store and engine: loads newer versions, skips damaged ones, never goes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from fairlead import metrics
from fairlead.transports.weights.base import Ancestor
from fairlead.transports.weights.filesystem import FilesystemWeightSource, FilesystemWeightStore
from fairlead.types import GenerationRequest, ModelInfo, SamplingParams, WeightVersion
from services.policy.front import EngineLimits
from services.policy.transformers_engine import TransformersEngine
from services.policy.weight_watcher import WeightWatcher
from tests.tiny import VOCABULARY_SIZE, tiny_causal_lm, tiny_tokenizer

FIRST = (Ancestor(1, 0),)
SECOND = (*FIRST, Ancestor(2, 1))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_causal_lm(tmp_path_factory.mktemp("m"))).eval()


@pytest.fixture
def store(tmp_path: Path) -> FilesystemWeightStore:
    return FilesystemWeightStore(tmp_path / "weights")


class Watched:
    """An engine, its watcher, and what both reported."""

    def __init__(self, engine: TransformersEngine, registry: CollectorRegistry) -> None:
        self.engine = engine
        self.registry = registry
        self.loads: list[WeightVersion | None] = []
        self.watcher: WeightWatcher

    def loaded(self) -> None:
        self.loads.append(self.engine.version)

    @property
    def version(self) -> WeightVersion | None:
        """The last version that the watcher reported; the engine may already use the next one."""
        return self.loads[-1] if self.loads else None

    @property
    def failures(self) -> float:
        return self.registry.get_sample_value("fairlead_policy_fetch_failures_total") or 0

    async def until(self, version: WeightVersion | None = None, *, failures: int = 0) -> None:
        async with asyncio.timeout(20):
            while self.version != version or self.failures < failures:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@asynccontextmanager
async def watching(
    model: PreTrainedModel, store: FilesystemWeightStore, *, interval: float = 0.01
) -> AsyncIterator[Watched]:
    registry = CollectorRegistry()
    policy_metrics = metrics.PolicyMetrics(registry)
    engine = TransformersEngine(
        model,
        tiny_tokenizer(),
        ModelInfo("m", "f", VOCABULARY_SIZE, 64, "float32"),
        limits=EngineLimits(),
        policy_metrics=policy_metrics,
    )
    watched = Watched(engine, registry)
    watched.watcher = WeightWatcher(
        FilesystemWeightSource(store),
        engine,
        policy_metrics,
        interval_seconds=interval,
        on_loaded=watched.loaded,
    )
    task = asyncio.create_task(watched.watcher.run())
    try:
        yield watched
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.to_thread(engine.close)


def publish(
    store: FilesystemWeightStore,
    model: PreTrainedModel,
    version: WeightVersion,
    lineage: tuple[Ancestor, ...] = FIRST,
) -> None:
    with store.publish(version, parent=None, lineage=lineage) as folder:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "model.safetensors")


async def test_newest_version_is_loaded_and_newer_ones_follow(
    model: PreTrainedModel, store: FilesystemWeightStore
) -> None:
    async with watching(model, store) as watched:
        assert watched.engine.version is None
        for update in (0, 1):
            publish(store, model, WeightVersion(1, update))
        await watched.until(WeightVersion(1, 1))
        publish(store, model, WeightVersion(2, 1), SECOND)
        await watched.until(WeightVersion(2, 1))
        assert len(watched.loads) >= 2
        assert watched.registry.get_sample_value("fairlead_policy_weight_incarnation") == 2
        assert watched.registry.get_sample_value("fairlead_policy_weight_update") == 1
        assert watched.failures == 0


async def test_damaged_version_is_counted_and_the_old_one_stays(
    model: PreTrainedModel, store: FilesystemWeightStore, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store, model, WeightVersion(1, 0))
    async with watching(model, store) as watched:
        await watched.until(WeightVersion(1, 0))
        staged = FilesystemWeightStore(store.root.parent / "aside")
        publish(staged, model, WeightVersion(1, 1))
        shard = staged.root / "1-1" / "model.safetensors"
        content = bytearray(shard.read_bytes())
        content[-3] ^= 0x10
        shard.write_bytes(content)
        (staged.root / "1-1").rename(store.root / "1-1")
        await watched.until(WeightVersion(1, 0), failures=2)
        assert "weights 1-1 not loaded, 1-0 remain in use" in caplog.text
        assert "model.safetensors does not match its SHA-256" in caplog.text
        request = GenerationRequest("r", (1, 5), SamplingParams(max_new_tokens=4))
        (completion,) = await watched.engine.generate(request, deadline=None)
        assert completion.version_spans[0].version == WeightVersion(1, 0)
        # After a repair in place it is loaded at the next retry; a newer version would be loaded at once.
        content[-3] ^= 0x10
        shard_in_store = store.root / "1-1" / "model.safetensors"
        shard_in_store.write_bytes(content)
        await watched.until(WeightVersion(1, 1))


async def test_damaged_version_does_not_delay_a_newer_one(
    model: PreTrainedModel, store: FilesystemWeightStore
) -> None:
    publish(store, model, WeightVersion(1, 0))
    (store.root / "1-0" / "model.safetensors").write_bytes(b"")
    async with watching(model, store) as watched:
        await watched.until(None, failures=3)
        assert watched.loads == []
        publish(store, model, WeightVersion(1, 1))
        await watched.until(WeightVersion(1, 1))


async def test_weights_of_another_model_are_refused(
    model: PreTrainedModel, store: FilesystemWeightStore, caplog: pytest.LogCaptureFixture
) -> None:
    with store.publish(WeightVersion(1, 0), parent=None, lineage=FIRST) as folder:
        save_file({"lm_head.weight": torch.zeros(3)}, folder / "model.safetensors")
    async with watching(model, store) as watched:
        await watched.until(None, failures=1)
        assert "lm_head.weight has shape (3,)" in caplog.text


async def test_lower_incarnation_is_never_loaded(
    model: PreTrainedModel, store: FilesystemWeightStore
) -> None:
    publish(store, model, WeightVersion(2, 1), SECOND)
    async with watching(model, store) as watched:
        await watched.until(WeightVersion(2, 1))
        # The store goes back to an older state, as after restoring a backup.
        older = FilesystemWeightStore(store.root.parent / "older")
        publish(older, model, WeightVersion(1, 9))
        (older.root / "1-9").rename(store.root / "1-9")
        (store.root / "2-1").rename(older.root / "2-1")
        publish(store, model, WeightVersion(1, 10))
        assert store.latest().version == WeightVersion(1, 10)  # type: ignore[union-attr]
        watched.watcher.kick()
        publish(store, model, WeightVersion(3, 1), (*SECOND, Ancestor(3, 1)))
        await watched.until(WeightVersion(3, 1))
        assert watched.loads == [WeightVersion(2, 1), WeightVersion(3, 1)]
        assert watched.registry.get_sample_value("fairlead_policy_swaps_total") == 2


async def test_kick_polls_at_once(model: PreTrainedModel, store: FilesystemWeightStore) -> None:
    publish(store, model, WeightVersion(1, 0))
    async with watching(model, store, interval=3_600) as watched:
        await watched.until(WeightVersion(1, 0))
        publish(store, model, WeightVersion(1, 1))
        watched.watcher.kick()
        await watched.until(WeightVersion(1, 1))
