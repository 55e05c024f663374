"""Compare compiled blocks with those of transformers: forward and backward passes of one micro-batch.

The quickstart's model, whose time is many small operations, and the shape of SmolLM2-135M with six of its
layers, whose time is large matrix products. `_seconds` is what compiling adds once, without a cache on disk.
"""

from __future__ import annotations

import copy
import time
from functools import partial

from torch._inductor.utils import fresh_cache
from transformers import LlamaConfig, PreTrainedModel

from benchmarks import tiny_models
from benchmarks.result import Result, Settings, interleaved
from trainer import compiling, memory
from trainer.sequences import PaddedSequences, TokenSequence, pad, response_logprobs

PROMPT_LENGTH = 9


def run(settings: Settings) -> dict[str, Result]:
    """Measure CPU seconds of both for either model."""
    small = tiny_models.config(width=64, layers=2, vocabulary=256, positions=128)
    large = tiny_models.smollm2(quick=settings.quick, **({} if settings.quick else {"num_hidden_layers": 6}))
    return {
        **_compare("compiled_training", small, settings, sequences=64, longest=44),
        **_compare("compiled_training_smollm2", large, settings, sequences=8, longest=64),
    }


def _compare(
    name: str, shape: LlamaConfig, settings: Settings, *, sequences: int, longest: int
) -> dict[str, Result]:
    count = 2 if settings.quick else sequences
    lengths = [longest - index % (longest // 3) for index in range(count)]
    batch = pad([TokenSequence((5,) * length, PROMPT_LENGTH) for length in lengths], settings.device)
    plain = tiny_models.causal_lm(shape, settings.device)
    compiled = copy.deepcopy(plain)
    compiling.compile_blocks(compiled, field="ppo")
    with fresh_cache():
        started = time.perf_counter()
        _learn(compiled, batch)
        first = time.perf_counter() - started
    variants = {"compiled": partial(_learn, compiled, batch), "plain": partial(_learn, plain, batch)}
    spent = interleaved(variants, rounds=settings.rounds(9))
    tokens = sum(lengths)
    what = "blocks of transformers"
    return {
        name: Result(
            tokens / spent["compiled"].cpu_seconds, "tokens/CPU-s", tokens / spent["plain"].cpu_seconds, what
        ),
        f"{name}_seconds": Result(first, "s", spent["plain"].seconds, f"a pass with {what}"),
    }


def _learn(model: PreTrainedModel, batch: PaddedSequences) -> None:
    memory.backward(response_logprobs(model, batch, temperature=1.0).sum())
