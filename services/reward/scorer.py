"""One reward model on one device: items → ids → scalars. Knows neither the wire nor the queue."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch

from fairlead import metrics
from fairlead.config.serving import RewardSection
from fairlead.errors import InternalError
from fairlead.nn import allocator, loading
from fairlead.nn.compiling import compile_model
from fairlead.nn.ensemble import load_ensemble, member_paths
from fairlead.nn.linear import pack_linears
from fairlead.nn.reward_model import RewardModel
from fairlead.types import ModelInfo, RewardInfo, ScoreItem
from services.batching.packing import Packing
from services.reward.compute import forward
from services.reward.item_reader import ItemReader, ReadingStyle

logger = logging.getLogger(__name__)


class RewardScorer:
    """One reward model, or an ensemble that is served as one model."""

    def __init__(
        self, path: str, section: RewardSection, *, reward_metrics: metrics.RewardMetrics | None = None
    ) -> None:
        """Load the model and its tokenizer.

        Args:
            path: folder or hub id.
            section: limits, and how to compute.
            reward_metrics: metrics of prompt sharing.

        Raises:
            ModelLoadError: the model cannot be loaded, or the checkpoint has no reward head.
            ConfigError: the model does not support a setting of the section.
        """
        loading.set_threads(section)
        self._section = section
        tokenizer = loading.load_tokenizer(member_paths(path)[0])
        self._reward = load_ensemble(path, section)
        self._device = loading.torch_device(section.device)
        first = self._reward.members[0]
        embedding = first.body.get_input_embeddings()
        assert isinstance(embedding, torch.nn.Embedding)
        model = ModelInfo(
            model_id=path,
            tokenizer_fingerprint=loading.tokenizer_fingerprint(tokenizer),
            vocabulary_size=embedding.num_embeddings,
            max_sequence_tokens=_max_sequence_tokens(first, section, tokenizer.model_max_length),
            dtype=section.dtype,
        )
        style = ReadingStyle(first.is_ours, first.is_encoder, answer_end=first.answer_end)
        self._reader = ItemReader(path, tokenizer, section, style=style, model=model)
        loading.check_vocabulary(path, first.model, tokenizer)
        self.info = RewardInfo(
            model=model,
            model_version=self._reward.version,
            calibration_temperature=section.calibration_temperature or self._reward.temperature,
        )
        """The model as callers see it."""
        self._optimize(path)
        self._heap = allocator.HeapBound() if self._device.type == "cpu" else None
        self._forward = forward.choose(
            self._reward, section, longest=model.max_sequence_tokens, reward_metrics=reward_metrics
        )

    @property
    def packing(self) -> Packing[tuple[int, ...]]:
        """How to choose batches that are cheap to compute."""
        return self._forward.packing

    def encode(self, items: Sequence[ScoreItem]) -> list[tuple[int, ...]]:
        """Return the ids of prompt and response of each item, joined and checked against the model's limits.

        Raises:
            InvalidInput: for the first item that cannot be scored.
        """
        return self._reader.read(items)

    def score(self, sequences: Sequence[tuple[int, ...]]) -> list[float | Exception]:
        """Return the scalar of each sequence, or an error for a sequence whose scalar is not finite."""
        return self.prepare(sequences)()

    def prepare(self, sequences: Sequence[tuple[int, ...]]) -> Callable[[], list[float | Exception]]:
        """Build the tensors of a batch; return a function that computes what `score` returns."""
        compute = self._forward.prepare(sequences)

        @torch.inference_mode()
        def run() -> list[float | Exception]:
            scores = compute().tolist()
            if self._heap is not None:
                self._heap.after_batch()
            return [score if math.isfinite(score) else _not_finite(score) for score in scores]

        return run

    def close(self) -> None:
        """Free the cache of prompts. The scorer can still be used."""
        self._forward.close()

    def _optimize(self, path: str) -> None:
        """Change how the models compute, after their version was derived from the weights."""
        for member in self._reward.members:
            if self._section.pack_weights and self._device.type == "cpu":
                count = pack_linears(member.body)
                logger.info("packed the weights of %d linear layers of %r for oneDNN", count, path)
            if self._section.compile:
                compile_model(member.model if member.is_encoder else member.body, path=path)


def _max_sequence_tokens(model: RewardModel, section: RewardSection, tokenizer_limit: int) -> int:
    limit = loading.max_sequence_tokens(model.model, section.max_sequence_tokens)
    # RoBERTa reserves positions for padding; only its tokenizer knows how many remain.
    return min(limit, tokenizer_limit) if model.is_encoder else limit


def _not_finite(score: float) -> InternalError:
    return InternalError(f"the reward model returned {score}: its weights are damaged or its dtype overflows")
