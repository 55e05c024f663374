"""Cross-entropy on the response tokens; prompts are only context.

`row_tokens` is the width of packed rows; 0 pads instead. The loss is the same either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from trainer.distributed import collectives, micro_batches
from trainer.distributed.sharding import Root
from trainer.sequences import TokenSequence, response_logprobs
from trainer.sft import packing


def micro_batch_losses(
    root: Root,
    sequences: Sequence[TokenSequence],
    *,
    max_tokens: int,
    row_tokens: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """Yield the loss of each micro-batch, as its share of the mean over all response tokens of the sequences.

    The sum of the gradients depends neither on the split into micro-batches nor on the number of ranks, each
    of which takes some of them.
    """
    total_tokens = sum(sequence.response_length for sequence in sequences)
    if row_tokens:
        rows = packing.rows(sequences, width=row_tokens)
        lengths = [packing.row_length(row) for row in rows]
        for part in micro_batches.share(lengths, root.device, max_tokens=max_tokens, group=root.group):
            root.group.progress("packed micro-batch")
            packed = [rows[index] for index in part] or [[micro_batches.NOTHING]]
            yield -root(packing.row_logprobs, packed, dtype=dtype).sum() / total_tokens
        return
    for _, batch in micro_batches.padded(sequences, root.device, max_tokens=max_tokens, group=root.group):
        logprobs_N = root(response_logprobs, batch, temperature=1.0, dtype=dtype)
        yield -logprobs_N.sum() / total_tokens


@torch.no_grad()
def mean_loss(
    root: Root,
    sequences: Sequence[TokenSequence],
    *,
    max_tokens: int,
    dtype: torch.dtype = torch.float32,
    on_micro_batch: Callable[[], None] = lambda: None,
) -> float:
    """Return nats per response token over all sequences; NaN without sequences.

    `on_micro_batch` is called after each micro-batch, equally often on every rank.
    """
    if not sequences:
        return float("nan")
    loss = 0.0
    for part in micro_batch_losses(root, sequences, max_tokens=max_tokens, dtype=dtype):
        loss += float(part)
        on_micro_batch()
    return collectives.summed({"loss": loss}, root.group)["loss"]
