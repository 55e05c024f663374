"""Compare the reference service's log-probs with the bare forward pass of the same model on the same batches.

Two cases: `whole`, where nearly every position is looked up and the complete output is reduced to log-probs;
and `answers`, with AlpacaEval's prompts and answers (`lengths/`) in the batches that the service packs, where
positions of prompts need no output layer.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks import lengths, tiny_models
from benchmarks.result import Result, Settings, interleaved, rates
from fairlead.config.serving import ReferenceSection
from fairlead.types import TokenPair
from services.batching.packing import pack
from services.reference.model import Lookup
from services.reference.scorer import ReferenceScorer

LONGEST = 1_024
AT_LEAST = 0.85


def run(settings: Settings) -> dict[str, Result]:
    """Measure tokens per second of both."""
    on_cpu = settings.device.type == "cpu"
    shape = tiny_models.config(
        width=64 if settings.quick else 256 if on_cpu else 1_024,
        layers=1 if settings.quick else 4,
        vocabulary=256 if settings.quick else 8_192 if on_cpu else 32_768,
        positions=LONGEST,
    )
    section = ReferenceSection(device="cpu" if on_cpu else "cuda")
    with tempfile.TemporaryDirectory() as folder:
        path = str(tiny_models.save(Path(folder), shape, reward=False))
        scorer = ReferenceScorer(path, section)
        model: nn.Module = AutoModelForCausalLM.from_pretrained(path)
        model = model.eval().to(settings.device)
    count = 2 if settings.quick else 8 if on_cpu else 128
    sizes = [
        (prompt, response) for prompt, *rest in lengths.groups(count, longest=LONGEST) for response in rest
    ]
    packed = pack([sum(size) for size in sizes], max_batch_tokens=section.batching.max_batch_tokens)
    cases = {
        "whole": [[(1, 31 if settings.quick else 255)] * 16],
        "answers": [[sizes[index] for index in batch] for batch in packed],
    }
    results: dict[str, Result] = {}
    for name, case in cases.items():
        batches = [_lookups(batch, vocabulary=shape.vocab_size) for batch in case]
        spent = interleaved(
            {
                "ours": partial(_ours, scorer, batches),
                "forward": partial(_forward, model, batches),
            },
            rounds=settings.rounds(7),
        )
        tokens = sum(lookup.num_tokens for batch in batches for lookup in batch)
        results |= rates(
            f"reference_{name}",
            tokens,
            "tokens",
            spent["ours"],
            spent["forward"],
            "bare forward pass",
            at_least=AT_LEAST,
        )
    return results


def _lookups(sizes: Sequence[tuple[int, int]], *, vocabulary: int) -> list[Lookup]:
    rng = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(count))

    return [Lookup(TokenPair(ids(prompt), ids(response)), temperature=1.0) for prompt, response in sizes]


def _ours(scorer: ReferenceScorer, batches: Sequence[Sequence[Lookup]]) -> None:
    for batch in batches:
        scorer.logprobs(batch)


def _forward(model: torch.nn.Module, batches: Sequence[Sequence[Lookup]]) -> None:
    device = next(model.parameters()).device
    for batch in batches:
        rows = [(*lookup.pair.prompt_token_ids, *lookup.pair.response_token_ids) for lookup in batch]
        longest = max(map(len, rows))
        tokens_BT = torch.tensor([[*row, *[tiny_models.PAD] * (longest - len(row))] for row in rows])
        mask_BT = (tokens_BT != tiny_models.PAD).long()
        with torch.inference_mode():
            model(input_ids=tokens_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False)
    if device.type == "cuda":
        torch.cuda.synchronize()
