"""Five architectures in everything that touches a model: log-probs, generation, packing, PPO, rewards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fairlead import metrics
from fairlead.config import RunConfig, load
from fairlead.config.base import ComputeSection
from fairlead.config.saving import save
from fairlead.config.serving import ReferenceSection, RewardSection
from fairlead.config.training import LoraSection
from fairlead.data.chat import Chat
from fairlead.data.demonstrations import Demonstration
from fairlead.data.encoding import encode_answer, encode_prompt
from fairlead.nn import adapters
from fairlead.nn.loading import load_causal_lm, load_tokenizer
from fairlead.transports.weights.base import Adapter
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import (
    Completion,
    GenerationRequest,
    Message,
    ModelInfo,
    SamplingParams,
    TextPair,
    TokenPair,
    WeightVersion,
)
from services.policy.front import EngineLimits
from services.policy.transformers_engine import TransformersEngine
from services.reference.scorer import ReferenceScorer
from services.reward.scorer import RewardScorer
from tests import architectures
from tests.architectures import ARCHITECTURES, CONTEXT
from tests.unit.trainer.ppo.ppo_world import World
from trainer.demonstrations import encode
from trainer.export.export import ExportOptions, export
from trainer.ppo.train import PpoTrainer
from trainer.sequences import TokenSequence, pad, response_logprobs
from trainer.sft import packing

CPU = ComputeSection(device="cpu")
PROMPT_LENGTHS = (1, 2, 7, 19, 40)
TOLERANCE = 1e-5

Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    made: dict[str, Path] = {}

    def once(name: str) -> Path:
        if name not in made:
            made[name] = architectures.causal_lm(name, tmp_path_factory.mktemp(name))
        return made[name]

    return once


@asynccontextmanager
async def engine_on(path: Path, lora: LoraSection | None = None) -> AsyncIterator[TransformersEngine]:
    model = load_causal_lm(str(path), CPU)
    adapter = None
    if lora is not None and lora.rank:
        adapters.add(model, lora, base=str(path), field="ppo.lora", seed=1)
        adapter = Adapter(adapters.fingerprint(str(path)), adapters.config(model))
    rows = model.get_input_embeddings().weight.shape[0]
    engine = TransformersEngine(
        model,
        load_tokenizer(str(path)),
        ModelInfo(str(path), "", rows, CONTEXT, "float32"),
        limits=EngineLimits(max_slots=3),
        policy_metrics=metrics.PolicyMetrics(CollectorRegistry()),
        initial=WeightVersion(0, 0),
        adapter=adapter,
    )
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.close)


def exact(path: Path, pairs: list[TokenPair], temperature: float) -> list[list[float]]:
    """One sequence at a time, all logits, float64, no padding and no cache."""
    model = load_causal_lm(str(path), CPU).double()
    found = []
    with torch.inference_mode():
        for pair in pairs:
            ids = torch.tensor([[*pair.prompt_token_ids, *pair.response_token_ids]])
            table = (model(ids, use_cache=False).logits[0] / temperature).log_softmax(-1)
            start = len(pair.prompt_token_ids) - 1
            found.append([float(table[start + i, t]) for i, t in enumerate(pair.response_token_ids)])
    return found


def by_trainer(path: Path, pairs: list[TokenPair], temperature: float) -> list[float]:
    sequences = [
        TokenSequence((*p.prompt_token_ids, *p.response_token_ids), len(p.prompt_token_ids)) for p in pairs
    ]
    model = load_causal_lm(str(path), CPU)
    with torch.inference_mode():
        padded = response_logprobs(model, pad(sequences, model.device), temperature=temperature)
        if temperature == 1:
            packed = packing.row_logprobs(model, [sequences[:3], sequences[3:]])
            torch.testing.assert_close(packed, padded, rtol=0, atol=TOLERANCE)
    return padded.tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
async def test_policy_reference_and_trainer_agree(saved: Saved, name: str):
    path = saved(name)
    generator = torch.Generator().manual_seed(0)
    prompts = [tuple(torch.randint(250, (n,), generator=generator).tolist()) for n in PROMPT_LENGTHS]
    reference = ReferenceScorer(str(path), ReferenceSection(device="cpu"))
    async with engine_on(path) as engine:
        for temperature in (0.7, 1.0):
            calls = (
                # More prompts than slots: they join and leave one another's batch.
                engine.generate(
                    GenerationRequest(
                        "t", prompt, SamplingParams(temperature=temperature, max_new_tokens=5 + 6 * i, seed=i)
                    ),
                    deadline=None,
                )
                for i, prompt in enumerate(prompts)
            )
            completions = [found[0] for found in await asyncio.gather(*calls)]
            pairs = [TokenPair(p, c.token_ids) for p, c in zip(prompts, completions, strict=True)]
            oracle = [value for row in exact(path, pairs, temperature) for value in row]
            found = reference.logprobs(reference.check(pairs, temperature))
            sides = {
                "policy": [value for completion in completions for value in completion.logprobs],
                "reference": [value for row in found for value in row],
                "trainer": by_trainer(path, pairs, temperature),
            }
            worst = {
                side: max(abs(a - b) for a, b in zip(values, oracle, strict=True))
                for side, values in sides.items()
            }
            assert len(oracle) > 40
            assert {side: gap for side, gap in worst.items() if gap > TOLERANCE} == {}


def configured(folder: Path, model: Path, **changes: object) -> RunConfig:
    lines = [{"messages": [{"role": "user", "content": f"item {n} is broken"}]} for n in range(12)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "runs": str(folder),
        "base": str(folder),
        "name": "tuned",
        "data.prompts": "prompts.jsonl",
        "policy.path": str(model),
        "ppo.updates": 3,
        "ppo.batch_size": 8,
        "ppo.mini_batch_size": 4,
        "ppo.learning_rate": 3e-3,
        "ppo.critic_learning_rate": 3e-3,
        "ppo.device": "cpu",
        "sampling.max_new_tokens": 5,
        "observe.tensorboard": False,
        "queue.give_up_seconds": 60,
    }
    return load(overrides=settings | changes)


def train(config: RunConfig, model: Path) -> dict[str, object]:
    """PPO in process, against a reward for answers of different tokens."""
    with World(model, config.weights_path, score=lambda answer: float(len(set(answer)))) as world:
        return PpoTrainer(config, queue=world.broker.trainer(), store=world.store).run()


async def served(config: RunConfig, prompts: list[tuple[int, ...]]) -> list[Completion]:
    """Greedy answers of an engine that has swapped in the newest weights of the run's store."""
    store = FilesystemWeightStore(config.weights_path)
    manifest = store.latest()
    assert manifest is not None
    async with engine_on(Path(config.policy.path), config.ppo.lora) as engine:
        await engine.load(manifest.version, store.fetch(manifest.version), adapter=manifest.adapter)
        requests = (GenerationRequest("t", p, SamplingParams(0, max_new_tokens=12)) for p in prompts)
        found = await asyncio.gather(*(engine.generate(one, deadline=None) for one in requests))
    return [completions[0] for completions in found]


def assert_answers_alike(folder: Path, prompts: list[tuple[int, ...]], answers: list[Completion]) -> None:
    """Scores that transformers computes from the folder."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            output = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0]
            table = model(output[None]).logits[0].log_softmax(-1)
        said = output[len(prompt) :].tolist()
        assert tokenizer.decode(said, skip_special_tokens=True) == answer.text
        assert said == list(answer.token_ids)
        logprobs = [float(table[len(prompt) - 1 + i, token]) for i, token in enumerate(said)]
        assert logprobs == pytest.approx(answer.logprobs, abs=TOLERANCE)


# Each family in one of the two ways; the other takes as long again.
FIRST = {"qwen2": 2, "qwen3": 0, "llama": 0, "gpt2": 2, "gpt_neox": 2}


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        pytest.param(
            name,
            rank,
            marks=() if FIRST[name] == rank else pytest.mark.slow,
            id=f"{name}-{'adapter' if rank else 'all weights'}",
        )
        for name in ARCHITECTURES
        for rank in (0, 2)
    ],
)
async def test_ppo_for_three_updates_and_export(saved: Saved, tmp_path: Path, name: str, rank: int):
    config = configured(tmp_path, saved(name), **{"ppo.lora.rank": rank})
    result = train(config, saved(name))
    assert (result["updates"], result["tasks_trained"], result["tasks_lost"]) == (3, 24, 0)
    assert result["mismatch_max"] < TOLERANCE
    rows = [json.loads(line) for line in config.folder.metrics("ppo").read_text().splitlines()]
    assert [row["ratio_first"] for row in rows] == pytest.approx([1, 1, 1], abs=1e-4)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(rows[-1]["kl"]) > 1e-3, "the policy has moved"

    tokenizer = load_tokenizer(str(saved(name)))
    asked = [Chat((Message("user", text),)) for text in ("where is my parcel ?", "the lamp", "x" * 30)]
    prompts = [tuple(encode_prompt(tokenizer, chat)) for chat in asked]
    answers = await served(config, prompts)
    save(config, config.folder.config)
    for which, kind in (("last", "whole"), ("1-3", "whole"), *([("last", "adapter")] if rank else [])):
        out = tmp_path / f"{which} {kind}"
        said = export(
            ExportOptions(run=config.folder.root, target=out, which=which, adapter=kind == "adapter")
        )
        assert said["policy"].endswith("version 1-3")
        assert (out / "policy" / "adapter_model.safetensors").exists() == (kind == "adapter")
        assert_answers_alike(out / "policy", prompts, answers)
        assert load_tokenizer(str(out / "policy")).chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reward_model_scores_equal_exported_and_in_transformers(tmp_path: Path, name: str):
    config = configured(tmp_path, tmp_path / "unused")
    path = architectures.reward_model(name, config.folder.reward_model, bias=0.75)
    save(config, config.folder.config)
    export(ExportOptions(run=config.folder.root, target=tmp_path / "out", parts=("reward_model",)))
    pairs = [
        TextPair("where is my parcel ?", "we are sorry ."),
        TextPair("the", "x" * 20),
        TextPair("a b", "c"),
    ]
    served, exported = (
        RewardScorer(str(one), RewardSection(device="cpu"))
        for one in (path, tmp_path / "out" / "reward_model")
    )
    sequences = served.encode(pairs)
    scores = served.score(sequences)
    assert scores == pytest.approx(exported.score(exported.encode(pairs)), abs=TOLERANCE)
    assert served.info.model.tokenizer_fingerprint == exported.info.model.tokenizer_fingerprint
    assert len({round(score, 2) for score in scores}) == 3

    folder = tmp_path / "out" / "reward_model"
    theirs = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        unpadded = [float(theirs(torch.tensor([ids])).logits[0, 0]) for ids in sequences]
        assert [one + theirs.config.fairlead_reward_bias for one in unpadded] == pytest.approx(
            scores, abs=TOLERANCE
        )
        if tokenizer.pad_token is None:
            return  # no token to spare: transformers says so itself where several are given
        batch = tokenizer.pad({"input_ids": [list(ids) for ids in sequences]}, return_tensors="pt")
        together = theirs(**batch).logits[:, 0].tolist()
    assert together == pytest.approx(unpadded, abs=TOLERANCE), "pooled before the padding, EOS and all"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rendered_prompt_starts_with_the_template_special_tokens(name: str):
    tokenizer = architectures.tokenizer_of(name)
    asked = Chat((Message("user", "where is my parcel ?"),))
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "where is my parcel ?"}], tokenize=False, add_generation_prompt=True
    )
    prompt, answer = encode_answer(tokenizer, asked, "we are sorry .")
    assert prompt == encode_prompt(tokenizer, asked)
    assert tokenizer.decode(prompt) == rendered
    begins = prompt.count(tokenizer.bos_token_id)
    assert begins == ARCHITECTURES[name].adds_bos, "llama has one BOS, the others none"
    assert answer[-1] == tokenizer.eos_token_id, "also where EOS pads"
    assert answer.count(tokenizer.eos_token_id) == 1


def test_eos_is_learnt_when_it_is_the_padding_token():
    """GPT-2: padding is known by length, so the loss of EOS is not masked with that of padding."""
    tokenizer = architectures.tokenizer_of("gpt2")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    examples = [
        Demonstration("the lamp", " is broken ."),
        Demonstration("where", " is my parcel ? new one ."),
    ]
    sequences = encode(examples, tokenizer, max_tokens=CONTEXT).sequences
    batch = pad(sequences, torch.device("cpu"))
    ends = [int(batch.targets_N[batch.rows_N == row][-1]) for row in range(2)]
    assert ends == [tokenizer.eos_token_id] * 2
    assert batch.mask_BT.sum().item() == sum(len(sequence.token_ids) for sequence in sequences)
