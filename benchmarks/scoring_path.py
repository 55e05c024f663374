"""Compare scoring through the reward service's path with transformers as most scripts call it.

Ours: the responses of each prompt are a request; they are checked, packed by the micro-batcher with all other
requests, and scored. The baseline scores the same sequences in order of arrival, 16 at a time, padded to the
longest. Lengths are those of AlpacaEval's answers (`lengths/`). Both must give the same scores.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry
from transformers import AutoModelForSequenceClassification

from benchmarks import lengths, tiny_models
from benchmarks.result import Result, Settings, interleaved, rates
from fairlead import metrics
from fairlead.config.serving import RewardSection
from fairlead.types import TokenPair
from services.batching.batcher import MicroBatcher
from services.reward.scorer import RewardScorer

BATCH = 16
LONGEST = 1_024
TOLERANCE = 1e-3
AT_LEAST = 1.8


def run(settings: Settings) -> dict[str, Result]:
    """Measure sequences per second of both."""
    on_cpu = settings.device.type == "cpu"
    count = 2 if settings.quick else 24 if on_cpu else 256
    shape = tiny_models.config(
        width=64 if settings.quick else 256 if on_cpu else 1_024,
        layers=1 if settings.quick else 4,
        vocabulary=4_096,
        positions=LONGEST,
    )
    requests = _requests(lengths.groups(count, longest=LONGEST), vocabulary=shape.vocab_size)
    section = RewardSection(device="cpu" if on_cpu else "cuda")
    with tempfile.TemporaryDirectory() as folder:
        path = str(tiny_models.save(Path(folder), shape, reward=True))
        scorer = RewardScorer(path, section)
        model = AutoModelForSequenceClassification.from_pretrained(path).eval().to(settings.device)
    found: dict[str, list[float]] = {}

    def ours() -> None:
        found["ours"] = asyncio.run(_through_the_batcher(scorer, section, requests))

    def transformers() -> None:
        found["transformers"] = _in_order_of_arrival(model, [pair for group in requests for pair in group])

    spent = interleaved({"ours": ours, "transformers": transformers}, rounds=settings.rounds(5))
    gap = max(abs(a - b) for a, b in zip(found["ours"], found["transformers"], strict=True))
    if gap > TOLERANCE:
        raise AssertionError(f"the two ways of scoring differ by {gap:g}: nothing to compare")
    return rates(
        "scoring",
        len(found["ours"]),
        "sequences",
        spent["ours"],
        spent["transformers"],
        f"transformers, order of arrival, padded, batches of {BATCH}",
        at_least=AT_LEAST,
    )


def _requests(groups: Sequence[lengths.Group], *, vocabulary: int) -> list[list[TokenPair]]:
    rng = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(count))

    requests = []
    for prompt_tokens, *responses in groups:
        prompt = ids(prompt_tokens)
        requests.append([TokenPair(prompt, ids(length)) for length in responses])
    return requests


async def _through_the_batcher(
    scorer: RewardScorer, section: RewardSection, requests: Sequence[Sequence[TokenPair]]
) -> list[float]:
    batcher_metrics = metrics.BatcherMetrics(registry=CollectorRegistry())
    async with MicroBatcher(
        scorer.score, section.batching, batcher_metrics=batcher_metrics, field_name="items"
    ) as batcher:

        async def one(items: Sequence[TokenPair]) -> list[float]:
            sequences = scorer.encode(items)
            return await batcher.submit(sequences, [len(sequence) for sequence in sequences])

        found = await asyncio.gather(*map(one, requests))
    return [score for scores in found for score in scores]


def _in_order_of_arrival(model: torch.nn.Module, pairs: Sequence[TokenPair]) -> list[float]:
    found: list[float] = []
    device = next(model.parameters()).device
    for start in range(0, len(pairs), BATCH):
        rows = [(*p.prompt_token_ids, *p.response_token_ids) for p in pairs[start : start + BATCH]]
        longest = max(map(len, rows))
        tokens_BT = torch.tensor([[*row, *[tiny_models.PAD] * (longest - len(row))] for row in rows])
        mask_BT = (tokens_BT != tiny_models.PAD).long()
        with torch.inference_mode():
            output = model(input_ids=tokens_BT.to(device), attention_mask=mask_BT.to(device))
        found += output.logits[:, 0].tolist()
    return found
