"""Compare the trainer's micro-batches, split by length, with ones that fill the budget of tokens.

A forward and backward pass of the quickstart's model over the sequences of one update. Decides
`OVERHEAD_TOKENS` in trainer/sequences.py.
"""

from __future__ import annotations

import random
from functools import partial

from benchmarks import tiny_models
from benchmarks.result import Result, Settings, interleaved
from trainer import memory
from trainer.sequences import OVERHEAD_TOKENS, TokenSequence, pack, pad, response_logprobs

SEQUENCES, VOCABULARY, BUDGET = 256, 256, 16_384


def run(settings: Settings) -> dict[str, Result]:
    """Measure CPU seconds of both, and their padded tokens."""
    draw = random.Random(0)
    count = 8 if settings.quick else SEQUENCES
    # Prompts of 9 tokens, answers of 18 on average, as in the quickstart.
    sequences = [
        TokenSequence((5,) * (prompt + max(1, min(40, int(draw.gauss(18, 8))))), prompt)
        for prompt in (draw.randint(6, 12) for _ in range(count))
    ]
    shape = tiny_models.config(width=64, layers=2, vocabulary=VOCABULARY, positions=128)
    model = tiny_models.causal_lm(shape, settings.device)
    overhead = OVERHEAD_TOKENS[settings.device.type]
    lengths = [len(sequence.token_ids) for sequence in sequences]
    split = list(pack(lengths, max_tokens=BUDGET, overhead=overhead))
    filled = [list(range(count))]

    def learn(groups: list[list[int]]) -> None:
        for group in groups:
            batch = pad([sequences[index] for index in group], settings.device)
            memory.backward(response_logprobs(model, batch, temperature=1.0).sum())

    spent = interleaved(
        {"split": partial(learn, split), "filled": partial(learn, filled)}, rounds=settings.rounds(7)
    )
    what = "micro-batches that fill the budget"
    return {
        "micro_batches": Result(
            count / spent["split"].cpu_seconds, "episodes/CPU-s", count / spent["filled"].cpu_seconds, what
        ),
        "micro_batch_tokens": Result(_padded(split, lengths), "tokens", _padded(filled, lengths), what),
    }


def _padded(groups: list[list[int]], lengths: list[int]) -> int:
    return sum(len(group) * max(lengths[index] for index in group) for group in groups)
