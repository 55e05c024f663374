"""Compare reference log-probs of groups, with each prompt computed once, with those of whole sequences.

Decides from which saving on `services.reference.shared_prompts` shares prompts, which it does on a CPU only.
"""

from __future__ import annotations

import random
import tempfile
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks import tiny_models
from benchmarks.result import Result, Settings, interleaved
from fairlead.nn.linear import ROWS, pack_linears
from fairlead.types import TokenPair
from services.reference.shared_prompts import SharedPrompts

SEQUENCES = 64
SHAPES = {"short": (12, 18, 4), "even": (40, 18, 4), "long": (300, 50, 8)}
"""Mean tokens of prompts and answers, and answers per prompt; they save 0.3, 0.5 and 0.75 of the tokens."""


def run(settings: Settings) -> dict[str, Result]:
    """Measure sequences per second of both, below the threshold and above it."""
    shape = tiny_models.config(
        width=64 if settings.quick else 192,
        layers=1 if settings.quick else 4,
        vocabulary=256,
        positions=1_024,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = str(tiny_models.save(Path(folder), shape, reward=False))
        body = AutoModelForCausalLM.from_pretrained(path).base_model
    assert isinstance(body, PreTrainedModel)
    pack_linears(body)
    shared = SharedPrompts(body, longest=shape.max_position_embeddings, multiple=ROWS)
    results: dict[str, Result] = {}
    for name, sizes in SHAPES.items():
        pairs = _pairs(*sizes, vocabulary=shape.vocab_size)
        spent = interleaved(
            {"shared": partial(_shared, shared, pairs), "whole": partial(_whole, body, pairs)},
            rounds=settings.rounds(7),
        )
        results[f"shared_prompts_{name}"] = Result(
            SEQUENCES / spent["shared"].seconds,
            "sequences/s",
            SEQUENCES / spent["whole"].seconds,
            "whole sequences",
        )
    return results


def _pairs(prompt: int, answer: int, per_prompt: int, *, vocabulary: int) -> list[TokenPair]:
    draw = random.Random(0)

    def ids(mean: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, vocabulary) for _ in range(draw.randint(mean // 2, mean * 3 // 2)))

    prompts = [ids(prompt) for _ in range(SEQUENCES // per_prompt)]
    return [TokenPair(prompt_ids, ids(answer)) for prompt_ids in prompts for _ in range(per_prompt)]


@torch.inference_mode()
def _shared(shared: SharedPrompts, pairs: list[TokenPair]) -> None:
    shared.hidden(pairs)


@torch.inference_mode()
def _whole(body: PreTrainedModel, pairs: list[TokenPair]) -> None:
    rows = [(*pair.prompt_token_ids, *pair.response_token_ids) for pair in pairs]
    longest = -(-max(map(len, rows)) // ROWS) * ROWS
    tokens_BT = torch.tensor([[*row, *(tiny_models.PAD,) * (longest - len(row))] for row in rows])
    body(input_ids=tokens_BT, attention_mask=(tokens_BT != tiny_models.PAD).long(), use_cache=False)
