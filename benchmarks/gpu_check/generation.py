"""Tokens per second of the embedded engine, transformers' `generate` and vLLM, each with log-probs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

from transformers import PreTrainedModel

from benchmarks import generation
from benchmarks.gpu_check.figures import Figure, skipped
from benchmarks.gpu_check.setting import Setting
from fairlead.types import SamplingParams, WeightVersion
from services.policy.decoder import Decoder
from services.policy.running_batch import RunningBatch
from services.policy.sample_state import SampleState
from services.policy.sampler import stream_key
from services.policy.static.decoder import StaticDecoder
from services.policy.static.graphs import Record

VERSION = WeightVersion(0, 0)

Build = Callable[[int], RunningBatch]
"""Returns an empty running batch with a number of slots."""


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield tokens per second of each way and model, for many rows and for one."""
    for name in setting.models:
        model = setting.model(name, dtype=setting.torch_dtype)
        tokens = setting.pick(128, 8)
        for rows in setting.pick(64, 4), 1:
            for what, work in _ways(model, rows=rows, tokens=tokens):
                work()
                rate = rows * tokens / setting.seconds(work)
                yield Figure(f"{name}, {rows} rows: {what}", rate, "tokens/s", f"answers of {tokens} tokens")
        yield from _vllm(setting, name, rows=setting.pick(64, 4), tokens=tokens)


def batches(model: PreTrainedModel, *, longest: int) -> Iterator[tuple[str, Build]]:
    """Yield the ways in which the embedded engine decodes."""

    def refuse(_: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("this run measures steps without them")

    def never() -> Record:
        return refuse

    if model.device.type == "cuda":
        yield "CUDA graphs", lambda slots: StaticDecoder(model, slots=slots, longest=longest)
    yield "static cache", lambda slots: StaticDecoder(model, slots=slots, longest=longest, recorder=never)
    yield "growing cache", lambda slots: Decoder(model, slots=slots)


def answers(count: int, tokens: int) -> list[SampleState]:
    """Return samples with prompts of different lengths."""
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


def _ways(model: PreTrainedModel, *, rows: int, tokens: int) -> Iterator[tuple[str, Callable[[], None]]]:
    for what, build in batches(model, longest=64 + tokens):
        # The same batch for warm-up and measurement, as in a service.
        yield what, partial(_decode, build(rows), rows, tokens)
    yield "transformers' generate", lambda: generation.generate(model, [tokens] * rows, rows)


def _decode(batch: RunningBatch, rows: int, tokens: int) -> None:
    generation.decode(batch, answers(rows, tokens), VERSION)


def _vllm(setting: Setting, name: str, *, rows: int, tokens: int) -> Iterator[Figure]:
    if find_spec("vllm") is None:
        yield skipped(f"{name}: vLLM", "vLLM is not installed")
        return
    from benchmarks import engines, tiny_models

    folder = tiny_models.save(setting.folder / name, setting.shape(name), reward=False)
    rate = engines.vllm_rate(folder, dtype=setting.dtype, answers=rows, tokens=tokens)
    yield Figure(f"{name}, {rows} rows: vLLM", rate, "tokens/s", f"answers of {tokens} tokens")
