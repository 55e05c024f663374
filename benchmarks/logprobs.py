"""Compare log-probs of a long sequence in chunks of rows with a bare pass through the unembedding.

Chunks bound the memory; this measures their cost and the best size. Also the trainer's output layer at the
vocabulary of a pretrained model: forward and backward pass, against logits that are kept whole, and against
chunks of 2^20 logits that are computed twice.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.result import Result, Settings, interleaved
from fairlead.nn.logprobs import hidden_logprobs, hidden_logprobs_and_entropies, logprobs_and_entropies
from trainer import memory

ROWS, WIDTH, VOCABULARY = 4_096, 256, 4_096
TRAINED_ROWS, TRAINED_WIDTH, LARGE_VOCABULARY = 512, 576, 49_152
"""Response tokens of a micro-batch, and the sizes of SmolLM2-135M."""


def run(settings: Settings) -> dict[str, Result]:
    """Measure rows per second for several chunk sizes."""
    device, row_count = settings.device, 128 if settings.quick else ROWS
    torch.manual_seed(0)
    unembedding = torch.nn.Linear(WIDTH, VOCABULARY, bias=False, device=device)
    hidden = torch.randn(row_count, WIDTH, device=device)
    tokens = torch.randint(0, VOCABULARY, (row_count,), device=device)

    def chunked(rows: int) -> None:
        with torch.inference_mode():
            hidden_logprobs(hidden, unembedding, tokens, temperature=1.0, chunk_rows=rows)
        _wait(device)

    def bare() -> None:
        with torch.inference_mode():
            unembedding(hidden)
        _wait(device)

    sizes = (64, 256, 1_024, ROWS)
    spent = interleaved(
        {"bare": bare, **{str(rows): partial(chunked, rows) for rows in sizes}},
        rounds=settings.rounds(7),
    )
    found = {
        f"logprobs_chunk_{rows}": Result(
            row_count / spent[str(rows)].seconds,
            "rows/s",
            row_count / spent["bare"].seconds,
            "unembedding only",
        )
        for rows in sizes
    }
    for is_trained in (False, True):
        found |= _trained(settings, is_trained=is_trained)
    return found


def _trained(settings: Settings, *, is_trained: bool) -> dict[str, Result]:
    """Measure CPU seconds of log-probs, entropies and their gradient, the output layer frozen or trained."""
    count, vocabulary = (16, 1_024) if settings.quick else (TRAINED_ROWS, LARGE_VOCABULARY)
    torch.manual_seed(0)
    layer = torch.nn.Linear(TRAINED_WIDTH, vocabulary, bias=False, device=settings.device)
    layer.requires_grad_(is_trained)
    hidden = torch.randn(count, TRAINED_WIDTH, device=settings.device, requires_grad=True)
    tokens = torch.randint(0, vocabulary, (count,), device=settings.device)

    def ours() -> None:
        found, _ = hidden_logprobs_and_entropies(hidden, layer, tokens, temperature=1.0)
        memory.backward(found.sum())

    def whole() -> None:
        found, _ = logprobs_and_entropies(layer(hidden), tokens, 1.0)
        memory.backward(found.sum())

    def twice() -> None:
        rows = max(1, (1 << 20) // vocabulary)
        parts = [
            checkpoint(
                lambda h, t: logprobs_and_entropies(layer(h), t, 1.0),
                hidden[start : start + rows],
                tokens[start : start + rows],
                use_reentrant=False,
            )[0]
            for start in range(0, count, rows)
        ]
        memory.backward(torch.cat(parts).sum())

    spent = interleaved({"ours": ours, "whole": whole, "twice": twice}, rounds=settings.rounds(3))
    name = "head_trained" if is_trained else "head_frozen"
    baselines = {"whole": "logits kept whole", "twice": "chunks of 2^20 logits, computed twice"}
    return {
        f"{name}_against_{other}": Result(
            count / spent["ours"].cpu_seconds, "tokens/CPU-s", count / spent[other].cpu_seconds, what
        )
        for other, what in baselines.items()
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
