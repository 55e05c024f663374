"""The hidden states that predict the responses of a batch, with every distinct prompt computed once.

Used by `LocalModel` for batches in which several responses answer one prompt, as those of a group do. A
first pass fills a cache with the keys and values of the prompts, a second one computes the responses after
copies of them. Whether an architecture supports that is tried when the model is loaded.

Shapes: U distinct prompts, P tokens of the longest, B responses, R tokens of the longest but its last, H
hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from fairlead.nn import trial
from fairlead.nn.trial import Comparison, Probe
from fairlead.types import TokenPair

CACHE_BYTES = 256 << 20
"""Largest size of the cache of a batch, as large as `reward.prefix_cache_bytes` by default."""
_SMALLEST_SAVING = 0.4
"""Share of a batch's tokens that must be saved, because a second pass and copies of the cache cost time. By
benchmarks/shared_prompts.py they are even at 0.3; sharing takes half the time at 0.5, a quarter at 0.75."""


class SharedPrompts:
    """A model body that computes shared prompts once."""

    def __init__(self, body: PreTrainedModel, *, longest: int, multiple: int = 1) -> None:
        """Try the model.

        Args:
            body: the model without its output layer.
            longest: tokens of the longest sequence.
            multiple: widths are padded to a multiple of this, for the kernels of linear layers.
        """
        self._body = body
        self._multiple = multiple
        self._bytes_per_token = 0.0
        self.obstacle = trial.obstacle(body, self._comparisons, longest=longest)
        """Why the model cannot share prompts; empty if it can."""

    def is_worthwhile(self, pairs: Sequence[TokenPair]) -> bool:
        """Return whether sharing prompts saves enough, and its cache is small enough."""
        lengths = [len(pair.prompt_token_ids) for pair in pairs]
        distinct = {pair.prompt_token_ids: len(pair.prompt_token_ids) for pair in pairs}
        saved = sum(lengths) - sum(distinct.values())
        answers = [len(pair.response_token_ids) for pair in pairs]
        if saved < _SMALLEST_SAVING * (sum(lengths) + sum(answers)):
            return False
        columns = max(lengths) + max(answers) + 2 * self._multiple
        return len(pairs) * columns * self._bytes_per_token <= CACHE_BYTES

    def hidden(self, pairs: Sequence[TokenPair]) -> list[Tensor]:
        """Return, for each pair, the hidden state [response tokens, H] before each token of the response."""
        prompts = list(dict.fromkeys(pair.prompt_token_ids for pair in pairs))
        row_of = {prompt: row for row, prompt in enumerate(prompts)}
        rows_B = self._tensor([row_of[pair.prompt_token_ids] for pair in pairs])
        last_UH, cache, mask_UP = self._prompts(prompts)
        last_BH = last_UH[rows_B]
        inputs = [pair.response_token_ids[:-1] for pair in pairs]
        width = self._width(inputs)
        if not width:
            return list(last_BH.unsqueeze(1))
        cache.batch_select_indices(rows_B)
        lengths_B1 = self._tensor([len(ids) for ids in inputs]).unsqueeze(1)
        starts_B1 = self._tensor([len(pair.prompt_token_ids) for pair in pairs]).unsqueeze(1)
        columns_R = torch.arange(width, device=self._body.device)
        found_BRH: Tensor = self._body(
            input_ids=self._tensor([[*ids, *(0,) * (width - len(ids))] for ids in inputs]),
            attention_mask=torch.cat([mask_UP[rows_B], (columns_R < lengths_B1).long()], dim=1),
            # Padding gets a position that the model has.
            position_ids=starts_B1 + torch.minimum(columns_R, (lengths_B1 - 1).clamp(min=0)),
            past_key_values=cache,
            use_cache=True,
        )[0]
        return [
            torch.cat([last_H.unsqueeze(0), found_RH[: len(ids)]])
            for last_H, found_RH, ids in zip(last_BH, found_BRH, inputs, strict=True)
        ]

    def _prompts(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Cache, Tensor]:
        """Return the last hidden states [U, H], the cache and the mask [U, P] of prompts, left-padded."""
        width = self._width(prompts)
        padding_U1 = self._tensor([width - len(prompt) for prompt in prompts]).unsqueeze(1)
        positions_UP = torch.arange(width, device=self._body.device) - padding_U1
        mask_UP = (positions_UP >= 0).long()
        outputs = self._body(
            input_ids=self._tensor([[*(0,) * (width - len(prompt)), *prompt] for prompt in prompts]),
            attention_mask=mask_UP,
            position_ids=positions_UP.clamp(min=0),
            use_cache=True,
        )
        cache: Cache = outputs.past_key_values
        return outputs[0][:, -1], cache, mask_UP

    def _width(self, rows: Sequence[Sequence[int]]) -> int:
        return -(-max(map(len, rows)) // self._multiple) * self._multiple

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, device=self._body.device)

    def _comparisons(self, probe: Probe) -> Iterator[Comparison]:
        short, long = probe.ids(3), probe.long_ids(6)
        pairs = [
            TokenPair(prompt, probe.ids(count))
            for prompt, count in ((long, 4), (short, 6), (long, 1), (short, 2))
        ]
        _, cache, mask_UP = self._prompts([short, long])
        self._bytes_per_token = _size_bytes(cache) / mask_UP.numel()
        for pair, found_RH in zip(pairs, self.hidden(pairs), strict=True):
            prompt, response = pair.prompt_token_ids, pair.response_token_ids
            elsewhere = (*probe.ids(len(prompt) - 1), prompt[-1])
            yield Comparison(found_RH, self._own(prompt, response), self._own(elsewhere, response))

    def _own(self, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
        return trial.own(self._body, (*prompt, *response), count=len(response) + 1)[:-1]


def _size_bytes(cache: Cache) -> int:
    """Return the size of a cache; raises AttributeError if it holds anything but keys and values."""
    tensors = (getattr(layer, name) for layer in cache.layers for name in ("keys", "values"))
    return sum(tensor.nbytes for tensor in tensors)
