"""Compare generation by our decode loop with transformers' `generate`; both return a log-prob per token.

Cases on a model of the quickstart's size: a batch of answers of equal length, for which `generate` is
designed, and more answers than slots with many lengths, where ours fills a slot as soon as it is free and
`generate` waits for the longest of each batch. The second decides the constants of the scheduler. Equal
answers are repeated on a model of 5 million parameters, where arithmetic costs more than calls.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks import tiny_models
from benchmarks.result import Result, Settings, interleaved, rates
from fairlead.types import SamplingParams, WeightVersion
from services.policy.decoder import Decoder
from services.policy.pending_request import PendingRequest
from services.policy.running_batch import RunningBatch
from services.policy.sample_state import SampleState
from services.policy.sampler import stream_key
from services.policy.scheduler import Scheduler

VOCABULARY, PROMPT_TOKENS, NEW_TOKENS = 96, 8, 24
SLOTS = (32, 64)
MIXED_ANSWERS, MIXED_TOKENS = 384, (6, 40)
LARGER_SLOTS, LARGER_TOKENS = 32, 128
VERSION = WeightVersion(0, 0)
AT_LEAST = 0.9


def run(settings: Settings) -> dict[str, Result]:
    """Measure tokens per second of both."""
    small = tiny_models.config(width=64, layers=2, vocabulary=VOCABULARY, positions=256)
    model = tiny_models.causal_lm(small, settings.device)
    rng = random.Random(0)
    mixed = [rng.randint(*MIXED_TOKENS) for _ in range(16 if settings.quick else MIXED_ANSWERS)]
    results: dict[str, Result] = {}
    for slots in SLOTS:
        results |= _measure(f"generation_equal_{slots}", model, [NEW_TOKENS] * slots, slots, settings)
        results |= _measure(f"generation_mixed_{slots}", model, mixed, slots, settings)
    if not settings.quick:
        larger = tiny_models.config(width=256, layers=6, vocabulary=1_024, positions=256)
        model = tiny_models.causal_lm(larger, settings.device)
        lengths = [LARGER_TOKENS] * LARGER_SLOTS
        results |= _measure("generation_larger", model, lengths, LARGER_SLOTS, settings)
    return results


def _measure(
    name: str, model: PreTrainedModel, lengths: list[int], slots: int, settings: Settings
) -> dict[str, Result]:
    spent = interleaved(
        {"ours": lambda: ours(model, lengths, slots), "generate": lambda: generate(model, lengths, slots)},
        rounds=settings.rounds(5),
    )
    what = "transformers generate, log-probs included"
    return rates(name, sum(lengths), "tokens", spent["ours"], spent["generate"], what, at_least=AT_LEAST)


def prompts(count: int) -> list[tuple[int, ...]]:
    """Return prompts of equal length."""
    rng = random.Random(1)
    return [tuple(rng.randrange(4, VOCABULARY) for _ in range(PROMPT_TOKENS)) for _ in range(count)]


def ours(model: PreTrainedModel, lengths: list[int], slots: int) -> None:
    """Generate answers of these lengths with the decoder."""
    samples = [
        SampleState(prompt, SamplingParams(), stream_key(0, index), frozenset(), limit=length)
        for index, (prompt, length) in enumerate(zip(prompts(len(lengths)), lengths, strict=True))
    ]
    decode(Decoder(model, slots=slots), samples, VERSION)


def decode(decoder: RunningBatch, samples: Sequence[SampleState], version: WeightVersion) -> None:
    """Generate every sample completely, as the engine's thread does, without requests and swaps."""
    scheduler = Scheduler(slots=decoder.slots, max_queue_tokens=10**9)
    for sample in samples:
        scheduler.put(PendingRequest([sample], min_version=None, deadline=None), tokens_per_second=1)
    while decoder.running or len(scheduler):
        taken = scheduler.take(free=decoder.slots - len(decoder.running), version=version)
        if taken:
            decoder.add([sample for _, sample in taken], version)
        decoder.remove([sample for sample in decoder.running if sample.finish_reason])
        if decoder.running:
            decoder.step(version)
            decoder.remove([sample for sample in decoder.running if sample.finish_reason])


def generate(model: PreTrainedModel, lengths: list[int], slots: int) -> None:
    """Generate answers of these lengths with transformers, batch after batch, with their log-probs."""
    given = prompts(len(lengths))
    generates: Any = model  # the stubs of transformers declare its methods as tensors
    for start in range(0, len(given), slots):
        ids = torch.tensor(given[start : start + slots], device=model.device)
        longest = max(lengths[start : start + slots])
        with torch.inference_mode():
            output = generates.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=longest,
                do_sample=True,
                top_k=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
            generates.compute_transition_scores(output.sequences, output.logits, normalize_logits=True)
