"""Cross-entropy on the response tokens; prompts are only context.

`row_tokens` is the width of packed rows; 0 pads instead. The loss is the same either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainer.sequences import TokenSequence, pack, pad, response_logprobs
from trainer.sft import packing


def micro_batch_losses(
    model: PreTrainedModel,
    sequences: Sequence[TokenSequence],
    *,
    max_tokens: int,
    row_tokens: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """Yield the loss of each micro-batch, as its share of the mean over all response tokens of the sequences.

    The sum of the gradients does not depend on the split into micro-batches.
    """
    total_tokens = sum(sequence.response_length for sequence in sequences)
    if row_tokens:
        for rows in packing.groups(packing.rows(sequences, width=row_tokens), max_tokens=max_tokens):
            yield -packing.row_logprobs(model, rows, dtype=dtype).sum() / total_tokens
        return
    for group in pack([len(sequence.token_ids) for sequence in sequences], max_tokens=max_tokens):
        batch = pad([sequences[index] for index in group], model.device)
        logprobs_N, _ = response_logprobs(model, batch, temperature=1.0, dtype=dtype)
        yield -logprobs_N.sum() / total_tokens


@torch.no_grad()
def mean_loss(
    model: PreTrainedModel,
    sequences: Sequence[TokenSequence],
    *,
    max_tokens: int,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Return nats per response token over all sequences; NaN without sequences."""
    if not sequences:
        return float("nan")
    parts = micro_batch_losses(model, sequences, max_tokens=max_tokens, dtype=dtype)
    return float(sum(float(part) for part in parts))
