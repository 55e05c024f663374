"""Compare generation by the embedded engine, vLLM and transformers' `generate`, each with log-probs.

A model of the shape of SmolLM2-135M with random weights, 32 answers of 128 tokens. Needs the environment of
`make vllm-env`: `.venv-vllm/bin/python -m benchmarks engines`. CPU time counts all processes of vLLM; on a
machine that does other things, only CPU time and the ratios in one run say something.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from prometheus_client import CollectorRegistry
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks import generation, tiny_models
from benchmarks.result import Result, Settings, Spent
from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.config.base import DType
from fairlead.errors import ConfigError
from fairlead.nn import loading
from fairlead.types import GenerationRequest, ModelInfo, SamplingParams
from services.policy.front import EngineLimits

if TYPE_CHECKING:
    from services.policy.vllm.engine import VllmEngine

ANSWERS, TOKENS, POSITIONS = 32, 128, 512


def run(settings: Settings) -> dict[str, Result]:
    """Measure tokens per second and per CPU second of all three, in turns.

    Raises:
        ConfigError: if vLLM is not installed.
    """
    if find_spec("vllm") is None:
        raise ConfigError(
            "engines",
            got="an environment without vLLM",
            allowed="`make vllm-env`, then .venv-vllm/bin/python -m benchmarks engines",
        )
    with tempfile.TemporaryDirectory() as name:
        folder = tiny_models.save(Path(name) / "model", _shape(quick=settings.quick), reward=False)
        return asyncio.run(_run(folder, settings))


_QUICK: Mapping[str, int] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def _shape(*, quick: bool) -> LlamaConfig:
    """Return the shape of SmolLM2-135M; with `quick`, a small one."""
    return tiny_models.smollm2(
        quick=False,
        **(_QUICK if quick else {}),
        max_position_embeddings=POSITIONS,
        pad_token_id=tiny_models.PAD,
        bos_token_id=tiny_models.BOS,
        eos_token_id=tiny_models.EOS,
    )


async def _run(folder: Path, settings: Settings) -> dict[str, Result]:
    torch.set_num_threads(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    nn.Module.eval(model)
    model.generation_config.eos_token_id = None
    options = {"kv_cache_memory_bytes": 1 << 30, "enforce_eager": True}
    engine = await asyncio.to_thread(_vllm_engine, folder, dtype="float32", slots=ANSWERS, options=options)
    lengths = [TOKENS] * ANSWERS
    variants: dict[str, Callable[[], Awaitable[None]]] = {
        "vllm": lambda: _generate(engine, ANSWERS, TOKENS),
        "ours": lambda: asyncio.to_thread(generation.ours, model, lengths, ANSWERS),
        "generate": lambda: asyncio.to_thread(generation.generate, model, lengths, ANSWERS),
    }
    try:
        spent = await _in_turns(variants, rounds=settings.rounds(3))
    finally:
        await asyncio.to_thread(engine.close)
    return _results(spent)


def vllm_rate(folder: Path, *, dtype: DType, answers: int, tokens: int) -> float:
    """Return the tokens per second of vLLM with its own defaults, for a model in a folder; needs vLLM."""

    async def rate() -> float:
        engine = await asyncio.to_thread(
            _vllm_engine, folder, dtype=dtype, slots=answers, options={"gpu_memory_utilization": 0.5}
        )
        try:
            await _generate(engine, answers, tokens)
            start = time.perf_counter()
            await _generate(engine, answers, tokens)
            return answers * tokens / (time.perf_counter() - start)
        finally:
            await asyncio.to_thread(engine.close)

    return asyncio.run(rate())


def _vllm_engine(folder: Path, *, dtype: DType, slots: int, options: Mapping[str, object]) -> VllmEngine:
    """Start vLLM with a model that never generates EOS."""
    from services.policy.vllm.engine import VllmEngine

    empty = loading.causal_lm_without_weights(str(folder))
    empty.generation_config.eos_token_id = empty.config.eos_token_id = None
    tokenizer = loading.load_tokenizer(str(folder))
    tokenizer.eos_token = None
    policy = {
        "engine": "vllm",
        "path": str(folder),
        "dtype": dtype,
        "serve_initial": True,
        "max_slots": slots,
        "vllm": dict(options),
    }
    return VllmEngine(
        empty,
        tokenizer,
        ModelInfo(str(folder), "", loading.vocabulary_size(empty), POSITIONS, dtype),
        config=RunConfig(policy=policy),
        limits=EngineLimits(max_slots=slots),
        policy_metrics=metrics.PolicyMetrics(CollectorRegistry()),
    )


async def _generate(engine: VllmEngine, answers: int, tokens: int) -> None:
    requests = (
        GenerationRequest("", prompt, SamplingParams(max_new_tokens=tokens, seed=number))
        for number, prompt in enumerate(generation.prompts(answers))
    )
    await asyncio.gather(*(engine.generate(each, deadline=None) for each in requests))


async def _in_turns(variants: dict[str, Callable[[], Awaitable[None]]], *, rounds: int) -> dict[str, Spent]:
    """Return median times of each variant, after a warm-up; CPU time includes child processes."""
    for work in variants.values():
        await work()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, work in variants.items():
            start, cpu_start = time.perf_counter(), _cpu_seconds()
            await work()
            cpu[name].append(_cpu_seconds() - cpu_start)
            seconds[name].append(time.perf_counter() - start)
    return {name: Spent(statistics.median(seconds[name]), statistics.median(cpu[name])) for name in variants}


def _cpu_seconds() -> float:
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _results(spent: dict[str, Spent]) -> dict[str, Result]:
    count = ANSWERS * TOKENS
    found = {}
    for name, what in (
        ("ours", "vLLM on a CPU, log-probs included"),
        ("generate", "vLLM on a CPU, log-probs included"),
    ):
        one, other = spent[name], spent["vllm"]
        found[f"engines_{name}"] = Result(count / one.seconds, "tokens/s", count / other.seconds, what)
        found[f"engines_{name}_cpu"] = Result(
            count / one.cpu_seconds, "tokens/CPU-s", count / other.cpu_seconds, what
        )
    return found
