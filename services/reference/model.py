"""One frozen language model on one device, or a rank's part of it: ids → log-probs of the response.

Knows torch, but neither the wire format nor the queue, and checks nothing.

Shapes: B batch, T token positions, H hidden, N response tokens of the whole batch.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from fairlead.config.serving import ReferenceSection
from fairlead.nn import allocator, loading, tensor_parallel
from fairlead.nn.linear import ROWS, pack_linears
from fairlead.nn.logprobs import hidden_logprobs
from fairlead.nn.unembedding import check_unembedding, output_layer
from fairlead.types import ModelInfo, TokenPair
from services.reference.shared_prompts import SharedPrompts

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


class LocalModel:
    """Implements `ReferenceModel` with a model in this process."""

    def __init__(self, path: str, section: ReferenceSection) -> None:
        """Load the model and its tokenizer.

        Args:
            path: folder or hub id.
            section: limits, and how to compute. If it divides the model among ranks, this process is one of
                them and has joined the others.

        Raises:
            ModelLoadError: the model cannot be loaded.
            ConfigError: it cannot be divided among that many ranks.
        """
        loading.set_threads(section)
        tokenizer = loading.load_tokenizer(path)
        size = section.tensor_parallel
        self._model = loading.load_causal_lm(path, section, load=_loader(path, size))
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
        # The layers of a divided model belong to transformers' plan.
        if section.pack_weights and self._device.type == "cpu" and size == 1:
            count = pack_linears(body)
            self._multiple = ROWS if count else 1
            logger.info("packed the weights of %d linear layers of %r for oneDNN", count, path)
        embedding = body.get_input_embeddings()
        assert isinstance(embedding, torch.nn.Embedding)
        self.info = ModelInfo(
            model_id=path,
            tokenizer_fingerprint=loading.tokenizer_fingerprint(tokenizer),
            vocabulary_size=embedding.num_embeddings,
            max_sequence_tokens=loading.max_sequence_tokens(self._model, section.max_sequence_tokens),
            dtype=section.dtype,
        )
        """Description of the model."""
        self._shared = self._sharing(section)
        self.failure: Future[None] | None = None
        """Never: this process cannot lose its model."""
        self.temperature: float | None = None
        """Any."""

    def logprobs(self, lookups: Sequence[Lookup]) -> list[tuple[float, ...]]:
        """Return log π_ref of every response id of each lookup."""
        found = self._logprobs(lookups)
        if self._heap is not None:
            self._heap.after_batch()
        return found

    def close(self) -> None:
        """Do nothing: the model is freed with this object."""

    @torch.inference_mode()
    def _logprobs(self, lookups: Sequence[Lookup]) -> list[tuple[float, ...]]:
        # A batch may mix temperatures: the body runs once, the output layer once per temperature.
        order = sorted(range(len(lookups)), key=lambda row: lookups[row].temperature)
        ordered = [lookups[row] for row in order]
        found: list[tuple[float, ...]] = [()] * len(lookups)
        hidden = self._hidden(ordered)
        start = 0
        for temperature, group in itertools.groupby(ordered, key=lambda lookup: lookup.temperature):
            size = len(list(group))
            rows = range(start, start + size)
            for row, logprobs in zip(
                rows, self._rows_logprobs(hidden, ordered, rows, temperature), strict=True
            ):
                found[order[row]] = logprobs
            start += size
        return found

    def _sharing(self, section: ReferenceSection) -> SharedPrompts | None:
        """Return what computes shared prompts once; None if this model does not.

        On a GPU the cache would take memory that nobody has planned for, and a batch of a single sequence
        shares nothing.
        """
        if (
            self._device.type != "cpu"
            or section.tensor_parallel > 1
            or section.batching.max_batch_tokens == 1
        ):
            return None
        shared = SharedPrompts(self._body, longest=self.info.max_sequence_tokens, multiple=self._multiple)
        if not shared.obstacle:
            return shared
        logger.info(
            "%r reads the prompt of each response by itself (%s)", self.info.model_id, shared.obstacle
        )
        return None

    def _hidden(self, lookups: Sequence[Lookup]) -> Sequence[torch.Tensor]:
        """Return for each lookup the hidden states [response tokens, H] before the tokens of its response."""
        pairs = [lookup.pair for lookup in lookups]
        if self._shared is not None and self._shared.is_worthwhile(pairs):
            return self._shared.hidden(pairs)
        hidden_BTH = self._padded(lookups)
        return [
            hidden_TH[len(lookup.pair.prompt_token_ids) - 1 : lookup.num_tokens - 1]
            for hidden_TH, lookup in zip(hidden_BTH, lookups, strict=True)
        ]

    def _padded(self, lookups: Sequence[Lookup]) -> torch.Tensor:
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
        self, hidden: Sequence[torch.Tensor], lookups: Sequence[Lookup], rows: range, temperature: float
    ) -> list[tuple[float, ...]]:
        """Return the log-probs of rows that share a temperature."""
        pairs = [lookups[row].pair for row in rows]
        hidden_NH = torch.cat([hidden[row] for row in rows])
        ids = itertools.chain.from_iterable(pair.response_token_ids for pair in pairs)
        tokens_N = torch.tensor(list(ids), device=self._device)
        logprobs_N = hidden_logprobs(hidden_NH, self._unembedding, tokens_N, temperature=temperature)
        values = iter(logprobs_N.tolist())
        return [tuple(itertools.islice(values, len(pair.response_token_ids))) for pair in pairs]


def _loader(path: str, size: int) -> loading.Loader | None:
    if size == 1:
        return None
    config = loading.load_config(path)
    division = tensor_parallel.division(path, config, size, field="reference.tensor_parallel")
    return partial(loading.load_pretrained, distributed_config=division)
