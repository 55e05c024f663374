"""Compare packing of scoring requests with one sequence at a time and with batches in order of arrival.

Decides the constants of services/batching/packing.py: the length from which only sequences of similar length
share a batch, and the size of the window that is sorted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from benchmarks.result import Result, Settings, interleaved
from fairlead.nn.heads import ScalarHead
from fairlead.nn.reward_model import RewardModel
from services.batching import packing

BUDGET = 8_192


def run(settings: Settings) -> dict[str, Result]:
    """Measure sequences per second by kind of packing, and computed ÷ real tokens by window."""
    device = settings.device
    torch.manual_seed(0)
    size = 64 if settings.quick else 256 if device.type == "cpu" else 1_024
    config = LlamaConfig(
        vocab_size=4_096,
        hidden_size=size,
        intermediate_size=4 * size,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_labels=1,  # type: ignore[call-arg]  # of the base class
        pad_token_id=0,
    )
    model: Any = LlamaForSequenceClassification(config).to(device).eval()  # type: ignore[no-untyped-call,arg-type]
    reward = RewardModel(body=model.model, head=ScalarHead(size).to(device), model=model)
    rng = random.Random(0)
    count = 4 if settings.quick else 64 if device.type == "cpu" else 1_024
    lengths = [min(512, max(4, round(rng.lognormvariate(3.8, 0.9)))) for _ in range(count)]

    def compute(batches: Sequence[Sequence[int]]) -> None:
        for batch in batches:
            rows = [lengths[index] for index in batch]
            tokens_BT = torch.ones(len(rows), max(rows), dtype=torch.long, device=device)
            with torch.inference_mode():
                reward.scores(tokens_BT, torch.tensor(rows, device=device)).tolist()

    separate = [[index] for index in range(count)]
    arrival = [list(range(start, min(start + 16, count))) for start in range(0, count, 16)]
    variants = {"separate": lambda: compute(separate), "arrival": lambda: compute(arrival)}
    for small in (0, 32, 128, 100_000):
        packed = _pack(lengths, small)
        variants[f"small_{small}"] = partial(compute, packed)
    spent = interleaved(variants, rounds=settings.rounds(5))
    results = {
        f"batching_{name}": Result(
            count / spent[name].seconds, "sequences/s", count / spent["separate"].seconds, "one at a time"
        )
        for name in variants
        if name != "separate"
    }
    return results | _windows(200 if settings.quick else 20_000)


def _pack(lengths: Sequence[int], small: int) -> list[list[int]]:
    before, packing.SMALL_TOKENS = packing.SMALL_TOKENS, small
    try:
        return packing.pack(lengths, max_batch_tokens=BUDGET)
    finally:
        packing.SMALL_TOKENS = before


def _windows(sequences: int) -> dict[str, Result]:
    """Return computed ÷ real tokens of a long queue sorted window by window; the baseline sorts it
    completely.
    """
    rng = random.Random(1)
    queue = [min(512, max(4, round(rng.lognormvariate(3.8, 0.9)))) for _ in range(sequences)]

    def padded(window_batches: float) -> float:
        computed, tokens = 0, 0
        window: list[int] = []
        for length in [*queue, 0]:
            if length == 0 or tokens >= window_batches * BUDGET:
                packed = packing.pack(window, max_batch_tokens=BUDGET)
                computed += sum(len(batch) * max(window[i] for i in batch) for batch in packed)
                window, tokens = [], 0
            window.append(length)
            tokens += length
        return computed / sum(queue)

    return {
        f"batching_window_{batches}": Result(
            padded(batches), "computed/real tokens", padded(float("inf")), "all sorted"
        )
        for batches in (1, 4, 16, 64)
    }
