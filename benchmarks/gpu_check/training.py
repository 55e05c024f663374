"""Speed and memory of the trainer on one GPU: SFT and PPO of whole models, without services."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, PreTrainedModel

from benchmarks import tiny_models
from benchmarks.gpu_check.figures import Figure
from benchmarks.gpu_check.setting import Setting
from fairlead.config import RunConfig
from fairlead.planning.machine import Machine
from fairlead.planning.plan import plan_run
from fairlead.types import (
    Completion,
    FinishReason,
    Outcome,
    PromptTask,
    Rollout,
    SamplingParams,
    VersionSpan,
    WeightVersion,
)
from trainer import optim
from trainer.distributed.sharding import Root
from trainer.ppo import actor_critic, batch
from trainer.ppo.learner import Learner
from trainer.sequences import TokenSequence
from trainer.sft import loss

_STEPS = 3
_VERSION = WeightVersion(1, 0)


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield tokens per second, MFU and peak memory of SFT and PPO, for each model."""
    for name in setting.models:
        yield from _sft(setting, name)
        _free()
        yield from _ppo(setting, name)
        _free()


def _sft(setting: Setting, name: str) -> Iterator[Figure]:
    model = setting.model(name, dtype=torch.float32)
    config = RunConfig(
        sft={
            "dtype": setting.dtype,
            "batch_size": setting.pick(64, 4),
            "max_sequence_tokens": setting.pick(1_024, 24),
            "max_micro_batch_tokens": setting.pick(16_384, 64),
        },
        model={"path": str(_saved(setting, name))},
    )
    section = config.sft
    sequences = _sequences(setting, section.batch_size, section.max_sequence_tokens, prompt=0.25)
    root, optimizer = Root(model), optim.adamw(optim.learning(model), learning_rate=1e-6, weight_decay=0.0)
    dtype = torch.bfloat16 if section.dtype == "bfloat16" else torch.float32

    def step() -> None:
        for part in loss.micro_batch_losses(
            root, sequences, max_tokens=section.max_micro_batch_tokens, dtype=dtype
        ):
            part.backward()  # type: ignore[no-untyped-call]
        optim.clipped_step(optimizer, optim.learning(model), max_norm=1.0, loss=0.0)

    yield from _rates(
        setting, f"SFT {name}", step, _Flops(model, sequences).passes(forward=1, backward=1), sequences
    )
    yield from _memory(setting, f"SFT {name}", config, "sft")


def _ppo(setting: Setting, name: str) -> Iterator[Figure]:
    config = RunConfig(
        policy={"path": str(_saved(setting, name)), "dtype": setting.dtype},
        reward={"path": str(_saved(setting, name))},
        ppo={
            "dtype": setting.dtype,
            "batch_size": setting.pick(64, 4),
            "mini_batch_size": setting.pick(32, 2),
            "max_micro_batch_tokens": setting.pick(16_384, 64),
            "proximal_logprobs": "all",
        },
        sampling={"max_new_tokens": setting.pick(512, 12)},
    )
    models = actor_critic.load(config.policy.path, config.ppo, seed=0)
    learner = Learner(models, config.ppo, temperature=1.0, seed=0)
    length = config.sampling.max_new_tokens
    sequences = _sequences(setting, config.ppo.batch_size, 2 * length, prompt=0.5)
    rollouts = batch.from_outcomes(_outcomes(sequences, setting.shape(name).vocab_size), models.device)
    assert rollouts is not None
    number = iter(range(1_000))
    # Proximal log-probs and old values forward, then both models forward and backward.
    flops = sum(
        _Flops(models.policy, sequences, has_logits=has_logits).passes(forward=2, backward=1)
        for has_logits in (True, False)
    )
    yield from _rates(
        setting, f"PPO {name}", lambda: learner.learn(rollouts, update=next(number)), flops, sequences
    )
    yield from _memory(setting, f"PPO {name}", config, "ppo")


def _rates(
    setting: Setting, what: str, step: Callable[[], object], flops: float, sequences: list[TokenSequence]
) -> Iterator[Figure]:
    step()
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rounds = setting.pick(_STEPS, 1)
    seconds = setting.seconds(lambda: [step() for _ in range(rounds)]) / rounds
    tokens = sum(len(sequence.token_ids) for sequence in sequences)
    yield Figure(
        f"{what}: tokens",
        tokens / seconds,
        "tokens/s",
        f"{len(sequences)} sequences per step, {setting.dtype}",
    )
    peak, source = setting.peak_flops()
    yield Figure(
        f"{what}: MFU", 100 * flops / seconds / peak, "%", f"of {source}; causal attention counted half"
    )


class _Flops:
    """Arithmetic that some sequences need, recomputation and padding not counted."""

    def __init__(
        self, model: PreTrainedModel, sequences: list[TokenSequence], *, has_logits: bool = True
    ) -> None:
        shape = model.config
        assert isinstance(shape, LlamaConfig)
        width, layers, heads = shape.hidden_size, shape.num_hidden_layers, shape.num_attention_heads
        assert heads is not None
        size = width // heads
        keys = (shape.num_key_value_heads or heads) * size
        block = 2 * width * width + 2 * width * keys + 3 * width * shape.intermediate_size
        tokens = sum(len(sequence.token_ids) for sequence in sequences)
        answers = sum(sequence.response_length for sequence in sequences)
        logits = width * shape.vocab_size * answers if has_logits else 0
        # Causal: a token attends to half of its sequence on average, in two products.
        attention = sum(len(sequence.token_ids) ** 2 / 2 for sequence in sequences) * 2 * width * layers
        self._forward = 2 * (block * layers * tokens + attention + logits)

    def passes(self, *, forward: int, backward: int) -> float:
        """Return the operations of some passes; a backward pass needs twice those of a forward pass."""
        return self._forward * (forward + 2 * backward)


def _memory(setting: Setting, what: str, config: RunConfig, stage: str) -> Iterator[Figure]:
    """Compare the peak of torch's allocator with the plan of the trainer's process."""
    if setting.device.type != "cuda":
        return
    properties = torch.cuda.get_device_properties(setting.device)
    plan = plan_run(
        config, machine=Machine(1 << 40, properties.total_memory), prompt_tokens=setting.pick(512, 12)
    )
    (process,) = (
        one for each in plan.stages if each.stage == stage for one in each.processes if one.is_trainer
    )
    peak = torch.cuda.max_memory_allocated()
    yield Figure(
        f"{what}: peak memory",
        peak / 2**30,
        "GiB",
        f"fairlead plan says {process.model_bytes / 2**30:.3g} GiB: {peak / process.model_bytes:.0%} of it",
    )


def _sequences(setting: Setting, count: int, longest: int, *, prompt: float) -> list[TokenSequence]:
    """Return random sequences from half of the longest length to it; a share of each is its prompt."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        length = draw.randint(longest // 2, longest)
        ids = tuple(draw.randrange(3, 500) for _ in range(length))
        found.append(TokenSequence(ids, max(1, int(length * prompt))))
    return found


def _outcomes(sequences: list[TokenSequence], vocabulary: int) -> list[Outcome]:
    """Return rollouts; a model with random weights gives every token about the same probability."""
    draw = random.Random(1)
    found = []
    for number, sequence in enumerate(sequences):
        prompt, answer = (
            sequence.token_ids[: sequence.prompt_length],
            sequence.token_ids[sequence.prompt_length :],
        )
        uniform = (-math.log(vocabulary),) * len(answer)
        completion = Completion(
            answer, uniform, FinishReason.LENGTH, (VersionSpan(_VERSION, 0, len(answer)),)
        )
        rollout = Rollout(completion, draw.gauss(0, 1), "", uniform)
        found.append(
            Outcome(PromptTask(number, prompt, "", SamplingParams(), _VERSION), (rollout,), "", 1, 0)
        )
    return found


def _saved(setting: Setting, name: str) -> Path:
    """Return a folder with a model and a tokenizer; written once."""
    folder = setting.folder / name
    if not folder.is_dir():
        tiny_models.save(folder, setting.shape(name), reward=False)
    return folder


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
