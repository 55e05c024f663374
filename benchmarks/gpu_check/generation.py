"""Tokens per second of the embedded engine, transformers' `generate` and vLLM, each with log-probs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
from transformers import PreTrainedModel

from benchmarks import generation
from benchmarks.gpu_check.figures import Figure
from benchmarks.gpu_check.setting import Setting
from fairlead.types import SamplingParams, WeightVersion
from services.policy.decoder import Decoder
from services.policy.sample_state import SampleState
from services.policy.sampler import stream_key

_VERSION = WeightVersion(0, 0)


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield tokens per second of each way and model."""
    for name in setting.models:
        model = setting.model(name, dtype=torch.bfloat16 if setting.dtype == "bfloat16" else torch.float32)
        rows, tokens = setting.pick(64, 4), setting.pick(128, 8)
        for what, work in _ways(setting, model, rows=rows, tokens=tokens):
            work()
            seconds = setting.seconds(work)
            yield Figure(
                f"{name}: {what}", rows * tokens / seconds, "tokens/s", f"{rows} answers of {tokens} tokens"
            )


def _ways(
    setting: Setting, model: PreTrainedModel, *, rows: int, tokens: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    lengths = [tokens] * rows
    yield (
        "embedded engine",
        lambda: generation.decode(Decoder(model, slots=rows), _samples(rows, tokens), _VERSION),
    )
    yield "transformers' generate", lambda: generation.generate(model, lengths, rows)


def _samples(count: int, tokens: int) -> list[SampleState]:
    draw = random.Random(0)
    return [
        SampleState(
            tuple(draw.randrange(3, 500) for _ in range(draw.randint(8, 64))),
            SamplingParams(),
            stream_key(0, number),
            frozenset(),
            limit=tokens,
        )
        for number in range(count)
    ]
