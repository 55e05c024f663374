"""One frozen language model: ids → log-probs of the response. Knows torch, but neither the wire format nor
the queue.

Shapes: B batch, T token positions, H hidden, N response tokens of the whole batch.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from fairlead.config.serving import ReferenceSection
from fairlead.errors import InternalError
from fairlead.nn import allocator, loading
from fairlead.nn.linear import ROWS, pack_linears
from fairlead.nn.logprobs import hidden_logprobs
from fairlead.nn.unembedding import check_unembedding, output_layer
from fairlead.types import ModelInfo, ReferenceInfo, TokenPair
from services.runtime import limits

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lookup:
    """One sequence whose response gets log-probs."""

    pair: TokenPair
    """Prompt and response."""
    temperature: float
    """Logits are divided by this."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens of prompt and response."""
        return len(self.pair.prompt_token_ids) + len(self.pair.response_token_ids)


class ReferenceScorer:
    """One frozen language model on one device."""

    def __init__(self, path: str, section: ReferenceSection) -> None:
        """Load the model and its tokenizer.

        Args:
            path: folder or hub id.
            section: limits, and how to compute.

        Raises:
            ModelLoadError: the model cannot be loaded.
        """
        loading.set_threads(section)
        self._section = section
        tokenizer = loading.load_tokenizer(path)
        self._model = loading.load_causal_lm(path, section)
        loading.check_vocabulary(path, self._model, tokenizer)
        check_unembedding(self._model)
        body = self._model.base_model
        assert isinstance(body, PreTrainedModel)
        self._body = body
        self._unembedding = output_layer(self._model)
        self._device = loading.torch_device(section.device)
        self._heap = allocator.HeapBound() if self._device.type == "cpu" else None
        self._positions = loading.max_sequence_tokens(self._model, 0)
        self._multiple = 1
        if section.pack_weights and self._device.type == "cpu":
            count = pack_linears(body)
            self._multiple = ROWS if count else 1
            logger.info("packed the weights of %d linear layers of %r for oneDNN", count, path)
        embedding = body.get_input_embeddings()
        assert isinstance(embedding, torch.nn.Embedding)
        self.info = ReferenceInfo(
            model=ModelInfo(
                model_id=path,
                tokenizer_fingerprint=loading.tokenizer_fingerprint(tokenizer),
                vocabulary_size=embedding.num_embeddings,
                max_sequence_tokens=loading.max_sequence_tokens(self._model, section.max_sequence_tokens),
                dtype=section.dtype,
            )
        )
        """The model as callers see it."""

    def check_count(self, count: int) -> None:
        """Check the number of sequences of a request.

        Raises:
            InvalidInput: there are none, or more than `reference.batching.max_items`.
        """
        limits.check_count("sequences", count, limit=self._section.batching.max_items)

    def check(self, pairs: Sequence[TokenPair], temperature: float) -> list[Lookup]:
        """Return the lookups of a request, checked against the model's limits.

        Raises:
            InvalidInput: for a temperature that is not a positive number, or the first invalid sequence.
        """
        limits.check_temperature("temperature", temperature, allow_zero=False)
        self.check_count(len(pairs))
        size = self.info.model.vocabulary_size
        for index, pair in enumerate(pairs):
            for field, ids in (
                ("sequences.prompt_token_ids", pair.prompt_token_ids),
                ("sequences.response_token_ids", pair.response_token_ids),
            ):
                limits.check_token_ids(field, ids, vocabulary_size=size, index=index)
            num_tokens = len(pair.prompt_token_ids) + len(pair.response_token_ids)
            maximum = self.info.model.max_sequence_tokens
            limits.check_sequence_tokens("sequences", num_tokens, limit=maximum, index=index)
        return [Lookup(pair, temperature) for pair in pairs]

    def logprobs(self, lookups: Sequence[Lookup]) -> list[tuple[float, ...] | Exception]:
        """Return log π_ref of every response id of each lookup, or an error where one is not finite."""
        found = self._logprobs(lookups)
        if self._heap is not None:
            self._heap.after_batch()
        return found

    @torch.inference_mode()
    def _logprobs(self, lookups: Sequence[Lookup]) -> list[tuple[float, ...] | Exception]:
        # A batch may mix temperatures: the body runs once, the output layer once per temperature.
        order = sorted(range(len(lookups)), key=lambda row: lookups[row].temperature)
        ordered = [lookups[row] for row in order]
        found: list[tuple[float, ...] | Exception] = [()] * len(lookups)
        hidden_BTH = self._hidden(ordered)
        start = 0
        for temperature, group in itertools.groupby(ordered, key=lambda lookup: lookup.temperature):
            size = len(list(group))
            rows = range(start, start + size)
            for row, logprobs in zip(
                rows, self._rows_logprobs(hidden_BTH, ordered, rows, temperature), strict=True
            ):
                found[order[row]] = logprobs
            start += size
        return found

    def _hidden(self, lookups: Sequence[Lookup]) -> torch.Tensor:
        lengths_B = torch.tensor([lookup.num_tokens for lookup in lookups])
        longest = int(lengths_B.max())
        if len(lookups) > 1:  # a single sequence needs no padding
            longest = min(-(-longest // self._multiple) * self._multiple, self._positions)
        tokens_BT = torch.zeros(len(lookups), longest, dtype=torch.long)
        for row, lookup in enumerate(lookups):
            ids = (*lookup.pair.prompt_token_ids, *lookup.pair.response_token_ids)
            tokens_BT[row, : len(ids)] = torch.tensor(ids)
        mask_BT = (torch.arange(tokens_BT.shape[1]) < lengths_B[:, None]).long()
        hidden_BTH: torch.Tensor = self._body(
            input_ids=tokens_BT.to(self._device), attention_mask=mask_BT.to(self._device), use_cache=False
        )[0]
        return hidden_BTH

    def _rows_logprobs(
        self, hidden_BTH: torch.Tensor, lookups: Sequence[Lookup], rows: range, temperature: float
    ) -> list[tuple[float, ...] | Exception]:
        """Return the log-probs of rows that share a temperature."""
        pairs = [lookups[row].pair for row in rows]
        hidden_NH = torch.cat(
            [
                # The hidden state at the position before a token predicts it.
                hidden_BTH[row, len(pair.prompt_token_ids) - 1 : lookups[row].num_tokens - 1]
                for row, pair in zip(rows, pairs, strict=True)
            ]
        )
        ids = itertools.chain.from_iterable(pair.response_token_ids for pair in pairs)
        tokens_N = torch.tensor(list(ids), device=self._device)
        logprobs_N = hidden_logprobs(hidden_NH, self._unembedding, tokens_N, temperature=temperature)
        values = iter(logprobs_N.tolist())
        rows_found = (tuple(itertools.islice(values, len(pair.response_token_ids))) for pair in pairs)
        return [row if all(map(math.isfinite, row)) else _not_finite() for row in rows_found]


def _not_finite() -> InternalError:
    return InternalError(
        "the reference model returned a log-prob that is not finite: "
        "its weights are damaged or its dtype overflows"
    )
