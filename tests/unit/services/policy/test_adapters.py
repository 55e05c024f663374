"""Versions with only an adapter: the replica matches the trainer and refuses other adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file

from fairlead import metrics
from fairlead.config.base import ComputeSection
from fairlead.config.training import LoraSection
from fairlead.errors import CorruptWeights
from fairlead.nn import adapters
from fairlead.nn.loading import load_causal_lm
from fairlead.transports.weights.base import Adapter, Ancestor
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import GenerationRequest, ModelInfo, SamplingParams, WeightVersion
from services.policy.front import EngineLimits
from services.policy.transformers_engine import TransformersEngine
from tests.tiny import VOCABULARY_SIZE, tiny_causal_lm, tiny_tokenizer
from trainer.model_state import unique_tensors
from trainer.ppo import publish
from trainer.sequences import TokenSequence, pad, response_logprobs

LORA = LoraSection(rank=4, alpha=8.0)
PROMPTS = ((1, 5), (1, 20, 21, 22, 23), (1, 9, 8))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(tiny_causal_lm(tmp_path_factory.mktemp("base")))


def adapted(base: str, *, dtype: str = "float32", lora_dtype=torch.float32, section: LoraSection = LORA):
    """Return the model and its adapter, as both trainer and replica start with them."""
    model = load_causal_lm(base, ComputeSection(device="cpu", dtype=dtype))
    adapters.add(model, section, base=base, field="ppo.lora", seed=3, dtype=lora_dtype)
    return model, Adapter(adapters.fingerprint(base), adapters.config(model))


def learn(model, *, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for tensor in adapters.tensors(model).values():
        tensor.data += 0.03 * torch.randn(tensor.shape, generator=draw).to(tensor.dtype)


class Replica:
    """An engine, set up as in the service."""

    def __init__(self, base: str, *, dtype: str = "float32", section: LoraSection = LORA) -> None:
        self.model, self.adapter = adapted(
            base, dtype=dtype, lora_dtype=getattr(torch, dtype), section=section
        )
        self.engine = TransformersEngine(
            self.model,
            tiny_tokenizer(),
            ModelInfo(base, "f", VOCABULARY_SIZE, 64, dtype),
            limits=EngineLimits(),
            policy_metrics=metrics.PolicyMetrics(CollectorRegistry()),
            adapter=self.adapter,
        )

    async def load(self, store: FilesystemWeightStore) -> None:
        manifest = store.latest()
        assert manifest is not None
        await self.engine.load(manifest.version, store.fetch(manifest.version), adapter=manifest.adapter)

    async def answer(self, prompt: tuple[int, ...]):
        sampling = SamplingParams(max_new_tokens=12, seed=len(prompt))
        return (await self.engine.generate(GenerationRequest("t", prompt, sampling), deadline=None))[0]


def published(store: FilesystemWeightStore, policy, update: int, adapter: Adapter | None) -> None:
    tensors = adapters.tensors(policy) if adapter else unique_tensors(policy)
    version, lineage = WeightVersion(1, update), (Ancestor(1, 0),)
    with store.publish(version, parent=None, lineage=lineage, adapter=adapter) as folder:
        for number, shard in enumerate(publish.shards(tensors), start=1):
            save_file(shard, folder / f"model-{number:05d}.safetensors")
    store.prune(keep=3)


def trainer_logprobs(model, prompt, answer, dtype: torch.dtype) -> torch.Tensor:
    sequence = TokenSequence((*prompt, *answer.token_ids), len(prompt))
    with torch.no_grad():
        return response_logprobs(model, pad([sequence], model.device), temperature=1.0, dtype=dtype)


# The error of bfloat16 itself is measured in tests/integration/test_parity.py.
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("bfloat16", 0.2)])
async def test_replica_logprobs_match_the_trainer_after_many_swaps(base, tmp_path, dtype, limit):
    policy, adapter = adapted(base, dtype=dtype)
    store, replica = FilesystemWeightStore(tmp_path / "weights"), Replica(base, dtype=dtype)
    first: list[tuple[int, ...]] = []
    try:
        for update in range(12):
            published(store, policy, update, adapter)
            await replica.load(store)
            answers = [await replica.answer(prompt) for prompt in PROMPTS]
            for prompt, answer in zip(PROMPTS, answers, strict=True):
                expected = trainer_logprobs(policy, prompt, answer, getattr(torch, dtype))
                assert (torch.tensor(answer.logprobs) - expected).abs().max() < limit
            first = first or [answer.token_ids for answer in answers]
            learn(policy, seed=update)
        assert [answer.token_ids for answer in answers] != first
    finally:
        replica.engine.close()


def test_adapter_version_is_small_and_equals_peft_export(tmp_path):
    # Wide enough for the rank to be low; the adapters of a tiny model are as large as the model.
    base = str(tiny_causal_lm(tmp_path / "wide", hidden_size=256, intermediate_size=512))
    policy, adapter = adapted(base, section=LoraSection(rank=4))
    learn(policy, seed=0)
    store = FilesystemWeightStore(tmp_path / "weights")
    published(store, policy, 0, adapter)
    manifest = store.latest()
    assert manifest is not None
    whole = sum(file.stat().st_size for file in Path(base).glob("*.safetensors"))
    assert sum(shard.size_bytes for shard in manifest.shards) < 0.06 * whole
    assert {tensor.name for tensor in manifest.tensors} == set(adapters.tensors(policy))
    folder = tmp_path / "peft"
    adapters.save(policy, folder, merge=False)
    (shard,) = store.fetch(manifest.version).glob("*.safetensors")
    kept, sent = load_file(folder / adapters.WEIGHTS_FILE), load_file(shard)
    assert kept.keys() == sent.keys()
    assert all(torch.equal(kept[name], sent[name]) for name in kept)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (LoraSection(rank=2, alpha=8.0), r"\[ppo.lora\] differs from the trainer's: r is 2 there and 4 here"),
        (LoraSection(rank=4, alpha=16.0), r"lora_alpha is 16.0 there and 8.0 here"),
        (LoraSection(rank=4, alpha=8.0, target_modules=("q_proj",)), r"target_modules is \['q_proj'\] there"),
        (None, r"the version holds a whole model: start this replica with \[ppo.lora\] rank 0"),
    ],
)
async def test_different_adapter_is_refused_and_the_old_one_stays(base, tmp_path, theirs, message):
    store, replica = FilesystemWeightStore(tmp_path / "weights"), Replica(base)
    policy, adapter = adapted(base)
    learn(policy, seed=0)
    try:
        published(store, policy, 0, adapter)
        await replica.load(store)
        before = await replica.answer(PROMPTS[0])
        if theirs is None:
            published(store, load_causal_lm(base, ComputeSection(device="cpu")), 1, None)
        else:
            published(store, *_with_update(adapted(base, section=theirs)))
        with pytest.raises(CorruptWeights, match=message):
            await replica.load(store)
        assert replica.engine.version == WeightVersion(1, 0)
        assert await replica.answer(PROMPTS[0]) == before
    finally:
        replica.engine.close()


def _with_update(pair):
    policy, adapter = pair
    return policy, 1, adapter


async def test_adapter_for_another_base_is_refused(base, tmp_path):
    other = str(tiny_causal_lm(tmp_path / "other", seed=1))
    store, replica = FilesystemWeightStore(tmp_path / "weights"), Replica(base)
    policy, adapter = adapted(other)
    published(store, policy, 0, adapter)
    try:
        with pytest.raises(CorruptWeights, match=rf"for '{other}' \(.*base of this replica is '{base}'"):
            await replica.load(store)
    finally:
        replica.engine.close()


async def test_adapter_with_wrong_tensors_is_refused(base, tmp_path):
    store, replica = FilesystemWeightStore(tmp_path / "weights"), Replica(base)
    policy, adapter = adapted(base)
    good = {name: tensor.detach().clone() for name, tensor in adapters.tensors(policy).items()}
    name = next(iter(good))
    bad = [
        ({other: tensor for other, tensor in good.items() if other != name}, "lacks base_model.model.model"),
        (
            good | {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)},
            "which the model does not have",
        ),
        (good | {name: torch.ones(2, 32)}, r"shape \(2, 32\), the model needs \(4, 32\)"),
    ]
    try:
        for update, (tensors, message) in enumerate(bad):
            version = WeightVersion(1, update)
            with store.publish(version, parent=None, lineage=(Ancestor(1, 0),), adapter=adapter) as folder:
                save_file(tensors, folder / "model-00001.safetensors")
            with pytest.raises(CorruptWeights, match=message):
                await replica.load(store)
    finally:
        replica.engine.close()


async def test_replica_without_adapters_refuses_one(base, tmp_path):
    store = FilesystemWeightStore(tmp_path / "weights")
    policy, adapter = adapted(base)
    published(store, policy, 0, adapter)
    plain = TransformersEngine(
        load_causal_lm(base, ComputeSection(device="cpu")),
        tiny_tokenizer(),
        ModelInfo(base, "f", VOCABULARY_SIZE, 64, "float32"),
        limits=EngineLimits(),
        policy_metrics=metrics.PolicyMetrics(CollectorRegistry()),
    )
    try:
        with pytest.raises(CorruptWeights, match=r"holds an adapter.*\[ppo.lora\] rank above 0"):
            await plain.load(WeightVersion(1, 0), store.fetch(WeightVersion(1, 0)), adapter=adapter)
    finally:
        plain.close()
