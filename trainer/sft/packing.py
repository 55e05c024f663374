"""Several sequences behind one another in a row, each blind to the others: less padding, the same loss.

The model is given positions that restart and no mask; transformers then keeps the sequences apart, in every
kind of attention. `check` finds an architecture that does not.

Shapes: B rows, T positions, N response tokens of all sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fairlead.errors import ConfigError
from fairlead.nn.logprobs import hidden_logprobs_and_entropies
from fairlead.nn.unembedding import output_layer
from trainer.sequences import TokenSequence, autocast, pad, response_logprobs

Row = list[TokenSequence]
TOLERANCE = 1e-3
"""Nats; a sequence that sees its neighbours is off by far more, another order of sums by far less."""


def rows(sequences: Sequence[TokenSequence], *, width: int) -> list[Row]:
    """Rows of at most `width` tokens: each sequence, longest first, into the first row that has room."""
    found: list[Row] = []
    room: list[int] = []
    for sequence in sorted(sequences, key=lambda sequence: -len(sequence.token_ids)):
        length = len(sequence.token_ids)
        place = next((index for index, left in enumerate(room) if left >= length), len(found))
        if place == len(found):
            found.append([])
            room.append(width)
        found[place].append(sequence)
        room[place] -= length
    return found


def groups(packed: Sequence[Row], *, max_tokens: int) -> Iterator[list[Row]]:
    """Rows of like length, as many as `max_tokens` padded tokens hold; one at least."""
    group: list[Row] = []
    for row in sorted(packed, key=lambda row: -_length(row)):
        if group and (len(group) + 1) * _length(group[0]) > max_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def row_logprobs(
    model: PreTrainedModel, packed: Sequence[Row], *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Log-probs [N] of the response tokens, row by row and sequence by sequence."""
    width = max(map(_length, packed))
    tokens_BT = torch.zeros(len(packed), width, dtype=torch.long)
    # What is left of a row is a sequence of its own, which nobody looks at.
    positions_BT = torch.zeros(len(packed), width, dtype=torch.long)
    numbers, columns, targets = [], [], []
    for number, row in enumerate(packed):
        start = 0
        for sequence in row:
            length = len(sequence.token_ids)
            tokens_BT[number, start : start + length] = torch.tensor(sequence.token_ids)
            positions_BT[number, start : start + length] = torch.arange(length)
            numbers.append(torch.full((sequence.response_length,), number))
            columns.append(torch.arange(start + sequence.prompt_length - 1, start + length - 1))
            targets.append(torch.tensor(sequence.token_ids[sequence.prompt_length :]))
            start += length
        positions_BT[number, start:] = torch.arange(width - start)
    body, device = model.base_model, model.device
    assert isinstance(body, PreTrainedModel)
    with autocast(device, dtype):
        hidden_BTH: Tensor = body(
            input_ids=tokens_BT.to(device), position_ids=positions_BT.to(device), use_cache=False
        )[0]
        hidden_NH = hidden_BTH[torch.cat(numbers).to(device), torch.cat(columns).to(device)]
        targets_N = torch.cat(targets).to(device)
        return hidden_logprobs_and_entropies(hidden_NH, output_layer(model), targets_N, temperature=1.0)[0]


@torch.no_grad()
def check(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> None:
    """Compares a few sequences in one row with the same ones padded.

    Raises:
        ConfigError: the model's architecture does not keep them apart.
    """
    row = sorted(sequences, key=lambda sequence: len(sequence.token_ids))[:4]
    together = row_logprobs(model, [row])
    apart, _ = response_logprobs(model, pad(row, model.device), temperature=1.0)
    gap = float((together - apart).abs().max())
    if not gap <= TOLERANCE:
        raise ConfigError(
            "sft.batching",
            got=f"'packing', and {type(model).__name__} lets packed sequences see one another",
            allowed="'length' for this architecture",
        )


def _length(row: Row) -> int:
    return sum(len(sequence.token_ids) for sequence in row)
