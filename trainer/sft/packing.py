"""Packs several sequences into a row without attention between them: less padding, the same loss.

The model gets positions that restart with each sequence and no mask; transformers then separates the
sequences in every kind of attention. `check` detects an architecture that does not.

Shapes: B rows, T positions, N response tokens of all sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fairlead.errors import ConfigError
from fairlead.nn import trial
from fairlead.nn.logprobs import hidden_logprobs_and_entropies
from fairlead.nn.trial import Comparison, Probe
from fairlead.nn.unembedding import output_layer
from trainer.distributed import vocabulary
from trainer.sequences import TokenSequence, autocast

Row = list[TokenSequence]


def rows(sequences: Sequence[TokenSequence], *, width: int) -> list[Row]:
    """Return rows of at most `width` tokens; each sequence, longest first, goes to the first row it fits."""
    found: list[Row] = []
    free_tokens: list[int] = []
    for sequence in sorted(sequences, key=lambda sequence: -len(sequence.token_ids)):
        length = len(sequence.token_ids)
        place = next((index for index, free in enumerate(free_tokens) if free >= length), len(found))
        if place == len(found):
            found.append([])
            free_tokens.append(width)
        found[place].append(sequence)
        free_tokens[place] -= length
    return found


def row_length(row: Row) -> int:
    """Return the number of tokens in a row."""
    return sum(len(sequence.token_ids) for sequence in row)


def row_logprobs(
    model: PreTrainedModel, packed: Sequence[Row], *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return log-probs [N] of the response tokens, row by row and sequence by sequence."""
    width = max(map(row_length, packed))
    tokens_BT = torch.zeros(len(packed), width, dtype=torch.long)
    # The rest of a row is a separate sequence whose outputs are not used.
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
    body = model.base_model
    device = model.device
    assert isinstance(body, PreTrainedModel)
    with autocast(device, dtype):
        hidden_BTH: Tensor = body(
            input_ids=tokens_BT.to(device), position_ids=positions_BT.to(device), use_cache=False
        )[0]
        hidden_NH = hidden_BTH[torch.cat(numbers).to(device), torch.cat(columns).to(device)]
        targets_N = torch.cat(targets).to(device)
        unembedding = output_layer(model)
        return hidden_logprobs_and_entropies(
            hidden_NH, unembedding, targets_N, temperature=1.0, of_logits=vocabulary.of_logits(unembedding)
        )[0]


def check(model: PreTrainedModel, *, longest: int) -> None:
    """Check that a few sequences have the same log-probs packed in one row as one by one.

    Args:
        model: the model.
        longest: tokens of the longest sequence that is trained on.

    Raises:
        ConfigError: if the architecture does not separate packed sequences.
    """
    reason = trial.obstacle(model, lambda probe: _comparisons(model, probe), longest=longest)
    if reason:
        raise ConfigError(
            "sft.batching",
            got=f"'packing', but {type(model).__name__} does not separate packed sequences ({reason})",
            allowed="'length' for this architecture",
        )


def _comparisons(model: PreTrainedModel, probe: Probe) -> Iterator[Comparison]:
    sequences = [
        TokenSequence(ids, 2) for ids in (probe.ids(5), probe.long_ids(11), probe.ids(4), probe.ids(9))
    ]
    # The shorter row is padded.
    packed = row_logprobs(model, [sequences, sequences[:2]])
    lengths = [sequence.response_length for sequence in (*sequences, *sequences[:2])]
    for found, sequence in zip(torch.split(packed, lengths), (*sequences, *sequences[:2]), strict=True):
        prompt = sequence.token_ids[: sequence.prompt_length]
        response = sequence.token_ids[sequence.prompt_length :]
        elsewhere = (*probe.ids(1), *prompt[1:])
        yield Comparison(found, *(_own_logprobs(model, before, response) for before in (prompt, elsewhere)))


def _own_logprobs(model: PreTrainedModel, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    logits_TV = trial.own(model, (*prompt, *response), count=len(response) + 1)[:-1]
    # With tensor parallelism each rank has logits of a part of the vocabulary.
    logprobs_T, _ = vocabulary.of_logits(output_layer(model))(
        logits_TV, torch.tensor(response, device=logits_TV.device), 1.0
    )
    return logprobs_T
