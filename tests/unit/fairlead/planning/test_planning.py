"""The numbers of `fairlead plan`, compared with real models: tensors, files and processes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from fairlead.config import RunConfig
from fairlead.config.base import ComputeSection
from fairlead.config.data import ScratchModel
from fairlead.config.sampling import EvaluationSection
from fairlead.config.serving import RewardSection
from fairlead.config.training import (
    LoraSection,
    PpoSection,
    RewardModelSection,
)
from fairlead.errors import ModelLoadError
from fairlead.nn import adapters, logprobs
from fairlead.nn.loading import load_causal_lm
from fairlead.nn.reward_model import load_reward_model
from fairlead.planning import formulas
from fairlead.planning.formulas import in_words
from fairlead.planning.machine import Machine
from fairlead.planning.model_size import model_size, scratch_size
from fairlead.planning.plan import RunPlan, plan_run
from fairlead.planning.process_memory import RUNTIME_BYTES, ProcessMemory
from fairlead.types import SamplingParams, WeightVersion
from services.policy import decoder
from services.policy.sample_state import SampleState
from tests import architectures
from tests.ranks import Ranks
from tests.tiny import tiny_causal_lm, tiny_reward_model
from trainer.checkpoint import CheckpointStore
from trainer.ppo import actor_critic
from trainer.sequences import TokenSequence, pad
from trainer.sft.scratch import make_model, make_tokenizer

CPU = ComputeSection(device="cpu")
LARGE = Machine(host_bytes=1 << 45, gpu_bytes=0)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Return the total size of tensors, tied ones once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@pytest.fixture(params=sorted(architectures.ARCHITECTURES))
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return architectures.causal_lm(request.param, tmp_path / request.param)


def test_model_size_matches_loaded_model(checkpoint: Path):
    size = model_size(str(checkpoint))
    model = load_causal_lm(str(checkpoint), CPU)
    assert size.exact
    assert size.parameters * 4 == nbytes(model.parameters())
    assert size.tensors == len({parameter.data_ptr() for parameter in model.parameters()})
    assert size.body * 4 == nbytes(model.base_model.parameters())
    assert (size.layers, size.hidden, size.vocabulary) == (2, 32, model.get_input_embeddings().num_embeddings)


def test_reward_model_is_body_and_head(tmp_path: Path):
    folder = tiny_reward_model(tmp_path / "reward")
    reward = load_reward_model(str(folder), CPU)
    assert model_size(str(folder)).body * 4 + (32 + 1) * 4 == nbytes(reward.parameters())


@pytest.mark.parametrize(("hidden", "layers"), [(64, 2), (40, 3)])
def test_scratch_size_matches_created_model(hidden: int, layers: int):
    words = ["a b c d e f", "g h i j k l m"]
    sizes = {"hidden_size": hidden, "num_layers": layers, "tokenizer": "words"}
    tokenizer = make_tokenizer(words, ScratchModel(**sizes))
    scratch = ScratchModel(**sizes, vocabulary_size=len(tokenizer))
    model = make_model(tokenizer, scratch, seed=0)
    size = scratch_size(scratch)
    assert size.parameters * 4 == nbytes(model.parameters())
    assert size.tensors == len({parameter.data_ptr() for parameter in model.parameters()})
    linear = [module for module in model.model.modules() if isinstance(module, nn.Linear)]
    assert sorted(size.matrices) == sorted(tuple(module.weight.shape) for module in linear)


@pytest.mark.parametrize("rank", [0, 4])
def test_reward_model_training_holds_the_planned_weights_and_gradients(
    models: dict[str, str], tmp_path: Path, rank: int
):
    section = RewardModelSection(device="cpu", path=models["policy"], ensemble_size=2, lora={"rank": rank})  # type: ignore[arg-type]
    training = process(planned(models, tmp_path, reward_model=section), "reward-model", "reward-model")
    loaded = load_reward_model(models["policy"], CPU, fresh_head=True)
    if rank:
        adapters.add(loaded.model, section.lora, base=models["policy"], field="reward_model.lora", seed=0)
    assert training.weights == 2 * nbytes([*loaded.body.parameters(), *loaded.head.parameters()])
    assert training.gradients == nbytes(loaded.parameters()) == training.optimizer / 2


def test_second_reward_model_is_counted(models: dict[str, str], tmp_path: Path):
    heldout = EvaluationSection(every_updates=1, reward_model=models["reward"])
    with_it = process(planned(models, tmp_path, evaluation=heldout), "ppo", "trainer")
    without = process(planned(models, tmp_path), "ppo", "trainer")
    loaded = load_reward_model(models["reward"], CPU)
    assert with_it.weights - without.weights == nbytes(loaded.parameters())


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    policy = tiny_causal_lm(tmp_path / "policy", tie_word_embeddings=False)
    return {"policy": str(policy), "reward": str(tiny_reward_model(tmp_path / "reward", seed=3))}


def planned(models: dict[str, str], tmp_path: Path, **sections: object) -> RunPlan:
    values: dict[str, object] = {
        "runs": tmp_path / "runs",
        "model": {"path": models["policy"]},
        "policy": {"path": models["policy"], "device": "cpu"},
        "reference": {"path": models["policy"], "device": "cpu"},
        "reward": {"path": models["reward"], "device": "cpu"},
    }
    values |= sections
    return plan_run(RunConfig(**values), machine=LARGE, prompt_tokens=16)


def process(plan: RunPlan, stage: str, name: str) -> ProcessMemory:
    return next(each for each in plan.stage(stage).processes if each.name == name)


@pytest.mark.parametrize("critic_init", ["policy", "reward_model", "none"])
@pytest.mark.parametrize("rank", [0, 4])
def test_trainer_holds_the_planned_weights_gradients_and_moments(
    models: dict[str, str], tmp_path: Path, critic_init: str, rank: int
):
    critic = {"estimator": "reinforce++"} if critic_init == "none" else {"critic_init": critic_init}
    decay = 0.9 if critic_init == "policy" else 0.0
    section = PpoSection(device="cpu", lora=LoraSection(rank=rank), ema_decay=decay, **critic)  # type: ignore[arg-type]
    plan = planned(models, tmp_path, ppo=section)
    trainer = process(plan, "ppo", "trainer")
    critic_path = models["reward"] if critic_init == "reward_model" else None
    loaded = actor_critic.load(models["policy"], section, critic_path=critic_path)
    batch = pad([TokenSequence((5, 6, 7, 8, 9), 2)], loaded.device)
    loaded.logprobs(batch, temperature=1.0)[0].sum().backward()
    parameters = [*loaded.policy.parameters()]
    if loaded.critic is not None:
        loaded.values(batch).sum().backward()
        parameters += loaded.critic.parameters()
    averaged = [] if loaded.average is None else [*loaded.average.tensors.values()]
    assert trainer.weights == nbytes(parameters) + nbytes(averaged)
    learning = [parameter for parameter in parameters if parameter.grad is not None]
    assert trainer.gradients == nbytes(
        [parameter.grad for parameter in learning if parameter.grad is not None]
    )
    loaded.step({"policy_loss": 0.0, "value_loss": 0.0}, where="in the test")
    state = loaded.state()
    moments = [
        tensor
        for name in state
        if name.endswith("_optimizer")
        for key, tensor in state[name].items()
        if not key.endswith(":step")
    ]
    assert trainer.optimizer == nbytes(moments)

    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(WeightVersion(1, 1), tensors=state, state={})
    tensors = [
        tensor for group in store.load(WeightVersion(1, 1)).tensors.values() for tensor in group.values()
    ]
    # keep = 2, and the one that is being written; Adam's counters come on top, four bytes each.
    counters = sum(tensor.nbytes for tensor in tensors if not tensor.ndim)
    assert plan.disk.checkpoints == 3 * (sum(tensor.nbytes for tensor in tensors) - counters)


def test_models_on_disk_are_adapters_unless_they_are_merged(models: dict[str, str], tmp_path: Path):
    size = model_size(models["policy"])
    lora = LoraSection(rank=4)
    model = load_causal_lm(models["policy"], CPU)
    adapters.add(model, lora, field="sft.lora", base=models["policy"], seed=0)
    adapter = nbytes(adapters.tensors(model).values())
    whole, body = 4 * size.parameters, 4 * size.body
    stages = ("sft", "reward_model", "ppo")
    for adapted in itertools.chain.from_iterable(itertools.combinations(stages, n) for n in range(4)):
        for merge in (False, True):
            sections = {stage: {"lora": {"rank": 4, "merge": merge}} for stage in adapted}
            plan = planned(models, tmp_path, **sections)
            sft, reward, policy = (not merge and stage in adapted for stage in stages)
            expected = (adapter if sft else whole, adapter if reward else body, adapter if policy else whole)
            assert plan.disk.models == sum(expected), (adapted, merge)


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the peak memory that a computation allocates."""
    work()  # what is made once and kept
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in changes))


@pytest.fixture(params=sorted(architectures.ARCHITECTURES))
def wider(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in which the blocks dominate the memory of a pass."""
    family = architectures.ARCHITECTURES[request.param]
    sizes = (
        {"n_embd": 128, "n_layer": 4}
        if request.param == "gpt2"
        else {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4}
    )
    wide = dataclasses.replace(family, settings={**family.settings, **sizes})
    monkeypatch.setitem(architectures.ARCHITECTURES, request.param, wide)
    return architectures.causal_lm(request.param, tmp_path / request.param)


@pytest.mark.parametrize(
    ("dtype", "recompute"), [("float32", False), ("bfloat16", False), ("float32", True)], ids=str
)
def test_activations_are_estimated_within_a_stated_factor(wider: Path, dtype: str, recompute: bool):
    section = PpoSection(device="cpu", dtype=dtype, gradient_checkpointing=recompute)  # type: ignore[arg-type]
    loaded = actor_critic.load(str(wider), section)
    sequences = [TokenSequence(tuple(5 + index % 40 for index in range(96 - 3 * row)), 4) for row in range(8)]
    batch = pad(sequences, loaded.device)

    def work() -> None:
        loaded.logprobs(batch, temperature=1.0)[0].sum().backward()

    size = model_size(str(wider))
    tokens = batch.tokens_BT.numel()
    estimate = formulas.activation_bytes(size, section, tokens=tokens, longest=96, device="cpu")
    estimate += formulas.autocast_bytes(size, section)
    assert 0.5 < peak_bytes(work) / estimate < 1.25


def test_forward_pass_without_gradients_needs_one_block(wider: Path):
    model = load_causal_lm(str(wider), CPU)
    tokens_BT = torch.full((8, 96), 5)
    mask_BT = torch.ones_like(tokens_BT)
    mask_BT[1:, 80:] = 0

    @torch.inference_mode()
    def work() -> None:
        model.base_model(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False)

    estimate = formulas.forward_bytes(model_size(str(wider)), "float32", tokens=8 * 96, longest=96)
    assert 0.3 < peak_bytes(work) / estimate < 1.25


def test_cache_of_beginnings_is_planned_where_they_are_shared(models: dict[str, str], tmp_path: Path):
    reward: dict[str, object] = {"path": models["reward"], "device": "cpu", "prefix_cache_bytes": 1 << 20}
    # Layers, keys and values, their width, bytes of a number; and the tokens of a batch.
    size = model_size(models["reward"])
    of_a_batch = size.layers * 2 * size.key_value_width * 4 * RewardSection().batching.max_batch_tokens
    for settings, expected in (
        ({}, (1 << 20) + of_a_batch),
        ({"share_prompts": False}, 0),
        ({"attention": "padded"}, 0),
        ({"device": "cuda"}, 0),
    ):
        found = process(planned(models, tmp_path, reward=reward | settings), "ppo", "reward")
        assert found.cache == expected


def test_cache_grows_to_the_planned_size(tmp_path: Path):
    folder = tiny_causal_lm(tmp_path / "policy")
    model, size = load_causal_lm(str(folder), CPU), model_size(str(folder))
    running = decoder.Decoder(model, slots=4)
    version = WeightVersion(1, 0)
    prompt, answer = 40, 60
    for start in range(0, 8, 4):
        samples = [
            SampleState(
                prompt=(5,) * prompt,
                sampling=SamplingParams(max_new_tokens=answer, seed=start + index),
                key=start + index,
                stop_ids=frozenset(),
                limit=answer,
                detokenizer=None,
            )
            for index in range(4)
        ]
        running.add(samples, version)
        for _ in range(answer - 1):
            running.step(version)
        running.remove(samples)
    blocks = [block for layer in running._cache._written() for block in layer.blocks]
    longest = formulas.cache_bytes(size, "float32", slots=4, longest=prompt + answer)
    assert longest / 2 <= nbytes(blocks) <= longest


def test_adapter_parameters_match_peft(checkpoint: Path):
    from fairlead.nn import adapters

    model = load_causal_lm(str(checkpoint), CPU)
    adapters.add(model, LoraSection(rank=3), field="ppo.lora", base=str(checkpoint), seed=0)
    found = formulas.adapter_parameters(model_size(str(checkpoint)), LoraSection(rank=3))
    assert found == sum(parameter.numel() for parameter in adapters.tensors(model).values())


def test_copied_constants_match_their_sources():
    assert formulas.CHUNK_LOGITS == logprobs.CHUNK_LOGITS
    assert formulas.CHUNK_ROWS == logprobs.CHUNK_ROWS
    assert formulas.KEPT_LOGITS == logprobs.KEPT_LOGITS
    assert formulas.PREFILL_TOKENS == decoder._PREFILL_TOKENS


@pytest.mark.parametrize(
    ("kind", "imports"),
    [
        (
            "light",
            "services.rollout_worker.worker, fairlead.clients, fairlead.transports.rollouts.redis_worker",
        ),
        # Four seconds of imports.
        pytest.param("torch", "services.reward.scorer", marks=pytest.mark.slow),
    ],
)
def test_idle_process_needs_the_planned_memory(kind: str, imports: str):
    program = f"import {imports}, sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "\n"
        measured = psutil.Process(started.pid).memory_info().rss
        started.communicate("")
    assert 1 / 1.5 < measured / RUNTIME_BYTES[kind] < 1.5


def test_warning_names_what_does_not_fit(models: dict[str, str], tmp_path: Path):
    plan = planned(models, tmp_path)
    assert plan.warnings() == ()
    small = dataclasses.replace(plan, machine=Machine(host_bytes=1 << 30, gpu_bytes=0))
    need = in_words(plan.stage("ppo").on("cpu"))
    found = small.warnings("ppo")
    assert found[0].startswith(f"ppo needs about {need} of main memory, most of it reward (")
    assert found[0].endswith(", but only 1 GiB are available")
    full = dataclasses.replace(plan, disk=dataclasses.replace(plan.disk, free=10))
    assert full.warnings("sft")[0].endswith(" of disk space, but only 10 B are free")


def test_models_on_a_gpu_need_no_main_memory(models: dict[str, str], tmp_path: Path):
    config = RunConfig(
        runs=tmp_path, policy={"path": models["policy"]}, reward={"path": models["reward"], "device": "cpu"}
    )
    plan = plan_run(config, machine=Machine(host_bytes=1 << 40, gpu_bytes=1 << 40), prompt_tokens=16)
    policy, reward = process(plan, "ppo", "policy"), process(plan, "ppo", "reward")
    assert policy.on("cuda") == policy.model_bytes + RUNTIME_BYTES["cuda"]
    assert policy.on("cpu") == policy.runtime + policy.weights
    assert (reward.on("cuda"), reward.on("cpu")) == (0, reward.runtime + reward.model_bytes)


def test_ranks_divide_what_is_trained_and_gather_what_they_compute_with(
    models: dict[str, str], tmp_path: Path
):
    machine = Machine(host_bytes=1 << 40, gpu_bytes=1 << 40, num_gpus=4)
    settings = {"policy": {"path": models["policy"]}, "reward": {"path": models["reward"]}}

    def planned_on(**ranks: int) -> RunPlan:
        config = RunConfig(runs=tmp_path, ranks=ranks, **settings)  # type: ignore[arg-type]
        return plan_run(config, machine=machine, prompt_tokens=16)

    one, four = (planned_on(per_node=number) for number in (1, 4))
    for stage, name in (("sft", "sft"), ("ppo", "trainer")):
        single, rank = process(one, stage, name), process(four, stage, name)
        assert (single.replicas, rank.replicas, single.gathered) == (1, 4, 0)
        assert 4 * rank.weights == pytest.approx(single.weights, abs=4)
        assert 4 * (rank.gradients + rank.optimizer) == pytest.approx(
            single.gradients + single.optimizer, abs=8
        )
        assert rank.gathered > 0
        assert rank.activations == single.activations
        # A rank holds its share, and a few whole tensors while it writes.
        assert rank.weights < rank.loading <= rank.weights + single.weights
        assert rank.on("cpu") == 4 * (rank.runtime + rank.loading)
    # What a checkpoint holds is copied into main memory if it is written while the next update is computed.
    settings["checkpoint"] = {"asynchronous": True}  # type: ignore[dict-item]
    assert process(planned_on(per_node=1), "ppo", "trainer").copied == 0
    copying = process(planned_on(per_node=4), "ppo", "trainer")
    assert copying.copied == rank.gradients + rank.optimizer
    # Versions are written while the copy exists.
    assert copying.on("cpu") == 4 * (copying.runtime + copying.loading + copying.copied)
    # Everything is on the first GPU, or every rank on its own with the services in turn.
    ppo = one.stage("ppo")
    assert ppo.on_gpus(1) == [ppo.on("cuda")]
    services = [process(four, "ppo", name).on("cuda") for name in ("policy", "reward", "reference")]
    rank = process(four, "ppo", "trainer").on("cuda") // 4
    assert four.stage("ppo").on_gpus(4) == [*(rank + service for service in services), rank]
    assert four.warnings() == ()
    small = dataclasses.replace(four, machine=dataclasses.replace(machine, gpu_bytes=1 << 20, num_gpus=2))
    needed = in_words(max(four.stage("ppo").on_gpus(4)))
    ppo_warnings = small.warnings("ppo")
    assert ppo_warnings[0].startswith(f"ppo needs about {needed} of memory of one GPU (trainer ")
    assert ppo_warnings[1] == "ppo has 4 ranks on each machine (ranks.per_node), but a machine has 2"
    pods = planned_on(per_node=2, nodes=2)
    assert process(pods, "ppo", "trainer").weights == rank_of(four).weights
    assert pods.warnings() == ()


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_every_rank_holds_what_is_planned_within_15_percent(
    models: dict[str, str], tmp_path: Path, lora_rank: int
):
    ranks = Ranks(2, "tests.unit.trainer.distributed.group_world:held", models["policy"], lora_rank)
    section = PpoSection(device="cpu", lora=LoraSection(rank=lora_rank))
    plan = planned(models, tmp_path, ppo=section, ranks={"per_node": 2})
    expected = process(plan, "ppo", "trainer")
    for rank in ranks.results():
        for name, measured in rank.items():  # type: ignore[attr-defined]
            assert measured == pytest.approx(getattr(expected, name), rel=0.15), name


def rank_of(plan: RunPlan) -> ProcessMemory:
    return process(plan, "ppo", "trainer")


def test_services_on_other_machines_are_not_counted(models: dict[str, str], tmp_path: Path):
    away = {"path": models["reward"], "addresses": ["dns:///reward:5002"]}
    names = [each.name for each in planned(models, tmp_path, reward=away).stage("ppo").processes]
    assert names == ["trainer", "policy", "reference", "rollout-worker"]


def test_prompt_tokens_are_estimated_from_bytes(models: dict[str, str], tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n} " * 30}) + "\n" for n in range(10))
    )
    config = RunConfig(
        base=tmp_path, data={"prompts": "prompts.jsonl"}, policy={"path": models["policy"]}, runs=tmp_path
    )
    notes = plan_run(config, machine=LARGE).notes
    assert "assuming 21 tokens for the longest prompt (60 bytes); --prompt-tokens overrides it" in notes


def test_adapter_folder_has_the_size_of_its_base(models: dict[str, str], tmp_path: Path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": models["policy"]}))
    assert model_size(str(folder)).parameters == model_size(models["policy"]).parameters
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="its adapter_config.json does not name a base model"):
        model_size(str(folder))


def test_checkpoint_with_pickled_weights_is_refused(tmp_path: Path):
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    )
    model.config.save_pretrained(tmp_path)
    torch.save(dict(model.named_parameters()), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"only as pickle \(pytorch_model\.bin\)"):
        model_size(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({}, "has no config.json"),
        ({"config.json": b"{"}, "its config.json cannot be read"),
        ({"config.json": b"{}"}, r"has no \*.safetensors"),
        ({"config.json": b"{}", "model.safetensors": b"\xff" * 20}, "is not a safetensors file"),
        ({"config.json": b"{}", "model.safetensors": b""}, "its safetensors cannot be read"),
    ],
)
def test_error_names_what_a_model_folder_lacks(tmp_path: Path, files: dict[str, bytes], error: str):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelLoadError, match=error):
        model_size(str(tmp_path))


def test_error_for_a_hub_id_names_the_download_command():
    with pytest.raises(ModelLoadError, match="run `hf download nobody/such-a-model` to download it"):
        model_size("nobody/such-a-model")
    with pytest.raises(ModelLoadError, match="no model folder './absent'"):
        model_size("./absent")
