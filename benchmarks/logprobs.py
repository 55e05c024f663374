"""Compare log-probs of a long sequence in chunks of rows with a bare pass through the unembedding.

Chunks bound the memory; this measures their cost and the best size.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.result import Result, Settings, interleaved
from fairlead.nn.logprobs import hidden_logprobs

ROWS, WIDTH, VOCABULARY = 4_096, 256, 4_096


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
    return {
        f"logprobs_chunk_{rows}": Result(
            row_count / spent[str(rows)].seconds,
            "rows/s",
            row_count / spent["bare"].seconds,
            "unembedding only",
        )
        for rows in sizes
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
