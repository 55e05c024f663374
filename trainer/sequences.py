"""Prompt-and-response sequences as the models see them: padded on the right, packed to a token budget.

Padding is recognised by length, never by id, so an EOS counts even if the tokenizer pads with EOS. All
per-token quantities of the trainer are flat: the response tokens of every sequence, one after the other.

Shapes: B sequences, T positions, N response tokens of all sequences, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fairlead.nn.logprobs import hidden_logprobs, hidden_logprobs_and_entropies
from fairlead.nn.unembedding import output_layer
from trainer.distributed import vocabulary


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt and its response."""

    token_ids: tuple[int, ...]
    """Prompt ids, then response ids."""
    prompt_length: int
    """How many of them are the prompt's; at least 1, so that every response token has a predecessor."""

    @property
    def response_length(self) -> int:
        """Number of response tokens."""
        return len(self.token_ids) - self.prompt_length


@dataclass(frozen=True, slots=True)
class PaddedSequences:
    """Sequences as one rectangle, and the positions of their response tokens in it."""

    tokens_BT: Tensor
    """Ids, right-padded with 0."""
    mask_BT: Tensor
    """1 at real tokens."""
    rows_N: Tensor
    """Row of each response token."""
    predictors_N: Tensor
    """Column of the hidden state that predicts it, one before its own."""
    targets_N: Tensor
    """Id of each response token."""


def pad(sequences: Sequence[TokenSequence], device: torch.device) -> PaddedSequences:
    """Return the sequences as one rectangle on the device."""
    width = max(len(sequence.token_ids) for sequence in sequences)
    tokens_BT = torch.zeros(len(sequences), width, dtype=torch.long)
    mask_BT = torch.zeros(len(sequences), width, dtype=torch.long)
    rows, predictors, targets = [], [], []
    for row, sequence in enumerate(sequences):
        length = len(sequence.token_ids)
        tokens_BT[row, :length] = torch.tensor(sequence.token_ids, dtype=torch.long)
        mask_BT[row, :length] = 1
        rows.append(torch.full((sequence.response_length,), row))
        predictors.append(torch.arange(sequence.prompt_length - 1, length - 1))
        targets.append(tokens_BT[row, sequence.prompt_length : length])
    parts = tokens_BT, mask_BT, torch.cat(rows), torch.cat(predictors), torch.cat(targets)
    return PaddedSequences(*(part.to(device) for part in parts))


OVERHEAD_TOKENS = {"cpu": 256, "cuda": 4_096}
"""What a micro-batch costs beyond its tokens, in tokens: calls on a CPU, launches of kernels on a GPU.
benchmarks/micro_batches.py compares the split that follows with one that fills the budget."""
_MAX_LENGTHS = 64
"""Different lengths that `pack` weighs against each other; with more, neighbours count as one."""


def overhead_tokens(device: torch.device) -> int:
    """Return what a micro-batch costs on a device beyond its tokens, in tokens."""
    return OVERHEAD_TOKENS.get(device.type, OVERHEAD_TOKENS["cuda"])


def pack(lengths: Sequence[int], *, max_tokens: int, overhead: int = 0) -> Iterator[list[int]]:
    """Yield micro-batches of indices with at most `max_tokens` padded tokens, similar lengths together.

    Among the splits of the sequences in the order of their lengths, the cheapest is chosen: its padded tokens
    and `overhead` tokens for each micro-batch. A sequence longer than the budget is a micro-batch of its own.
    The result depends only on the lengths and on these two numbers.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start, end in length_ranges([lengths[index] for index in order], max_tokens, overhead):
        rows = max(1, max_tokens // lengths[order[start]])
        yield from (order[first : min(first + rows, end)] for first in range(start, end, rows))


def length_ranges(lengths: Sequence[int], max_tokens: int, overhead: int) -> list[tuple[int, int]]:
    """Return the ranges of descending lengths within which micro-batches are as wide as the first one."""
    cuts = [place for place in range(1, len(lengths)) if lengths[place] != lengths[place - 1]]
    cuts = cuts[:: -(-len(cuts) // _MAX_LENGTHS) or 1]
    places = [0, *cuts, len(lengths)] if lengths else [0]
    # Cost of everything from a place on, and where its first range ends.
    cheapest = {len(lengths): (0, len(lengths))}
    for start in reversed(places[:-1]):
        width = lengths[start]
        rows = max(1, max_tokens // width)
        cheapest[start] = min(
            (width * (end - start) + overhead * -(-(end - start) // rows) + cheapest[end][0], end)
            for end in places
            if end > start
        )
    found = []
    start = 0
    while start < len(lengths):
        end = cheapest[start][1]
        found.append((start, end))
        start = end
    return found


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Compute the body in `dtype` while the weights stay float32, so that small updates are not lost."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def predictor_hidden(body: PreTrainedModel, batch: PaddedSequences) -> Tensor:
    """Return the hidden states [N, H] at the positions that predict the response tokens."""
    hidden_BTH: Tensor = body(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT, use_cache=False)[0]
    return hidden_BTH[batch.rows_N, batch.predictors_N]


def response_logprobs(
    model: PreTrainedModel, batch: PaddedSequences, *, temperature: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return log-probs [N] of the response tokens under a causal LM, in float32."""
    unembedding = output_layer(model)
    if vocabulary.is_divided(unembedding):
        return response_logprobs_and_entropies(model, batch, temperature=temperature, dtype=dtype)[0]
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    with autocast(batch.tokens_BT.device, dtype):
        hidden_NH = predictor_hidden(body, batch)
        return hidden_logprobs(hidden_NH, unembedding, batch.targets_N, temperature=temperature)


def response_logprobs_and_entropies(
    model: PreTrainedModel, batch: PaddedSequences, *, temperature: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return the result of `response_logprobs`, and the entropies [N] of the same distributions."""
    body = model.base_model
    unembedding = output_layer(model)
    assert isinstance(body, PreTrainedModel)
    with autocast(batch.tokens_BT.device, dtype):
        hidden_NH = predictor_hidden(body, batch)
        return hidden_logprobs_and_entropies(
            hidden_NH,
            unembedding,
            batch.targets_N,
            temperature=temperature,
            of_logits=vocabulary.of_logits(unembedding),
        )
