"""One reward model: items → ids → scalars. Knows neither the wire nor the queue.

What computes the scalars is decided here: this process, the ranks among which the model is divided, or vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from fairlead import metrics
from fairlead.config.serving import RewardSection
from fairlead.errors import InternalError
from fairlead.nn import loading
from fairlead.nn.ensemble import member_paths
from fairlead.planning.installed_vllm import require_vllm
from fairlead.types import ModelInfo, RewardInfo, ScoreItem, TextPair, TokenPair
from services.batching.packing import Packing
from services.reward.compute.model import LocalModel, ModelFacts
from services.reward.item_reader import ItemReader, ReadingStyle
from services.reward.ranks import RankedModel


class ScoringModel(Protocol):
    """Computes the scalars of sequences of ids."""

    @property
    def facts(self) -> ModelFacts:
        """What the service has to know about the model."""
        ...

    @property
    def packing(self) -> Packing[tuple[int, ...]]:
        """How to choose batches that are cheap to compute."""
        ...

    @property
    def failure(self) -> Future[None] | None:
        """Fails with the error after which nothing can be computed; None if that is not possible."""
        ...

    def prepare(self, sequences: Sequence[tuple[int, ...]]) -> Callable[[], list[float]]:
        """Build a batch; return a function that computes the scalar of each sequence."""
        ...

    def close(self) -> None:
        """Free memory that outlives the model."""
        ...


class RewardScorer:
    """One reward model, or an ensemble that is served as one model."""

    probes: tuple[ScoreItem, ...] = (TokenPair((), (1, 2)), TextPair("Hello", "world"))
    """Ids that every vocabulary has; text for encoders, which take no ids."""

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
        tokenizer = loading.load_tokenizer(member_paths(path)[0])
        self.model: ScoringModel
        """The model."""
        if section.engine == "vllm":
            self.model = _vllm_model(path, section, tokenizer)
        elif section.tensor_parallel > 1:
            self.model = RankedModel(path, section)
        else:
            self.model = LocalModel(path, section, tokenizer, reward_metrics=reward_metrics)
        try:
            self._describe(path, section, tokenizer)
        except BaseException:
            self.model.close()
            raise

    def _describe(self, path: str, section: RewardSection, tokenizer: PreTrainedTokenizerBase) -> None:
        facts = self.model.facts
        model = ModelInfo(
            model_id=path,
            tokenizer_fingerprint=loading.tokenizer_fingerprint(tokenizer),
            vocabulary_size=facts.vocabulary_size,
            max_sequence_tokens=facts.max_sequence_tokens,
            dtype=section.dtype,
        )
        style = ReadingStyle(facts.is_ours, facts.is_encoder, answer_end=facts.answer_end)
        self._reader = ItemReader(path, tokenizer, section, style=style, model=model)
        self.info = RewardInfo(
            model=model,
            model_version=facts.version,
            calibration_temperature=section.calibration_temperature or facts.temperature,
        )
        """The model as callers see it."""

    @property
    def failure(self) -> Future[None] | None:
        """Fails with the error after which nothing can be computed; None if that is not possible."""
        return self.model.failure

    @property
    def packing(self) -> Packing[tuple[int, ...]]:
        """How to choose batches that are cheap to compute."""
        return self.model.packing

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
        compute = self.model.prepare(sequences)
        return lambda: [score if math.isfinite(score) else _not_finite(score) for score in compute()]

    def close(self) -> None:
        """Free the memory that outlives the scorer."""
        self.model.close()


def _vllm_model(path: str, section: RewardSection, tokenizer: PreTrainedTokenizerBase) -> ScoringModel:
    require_vllm("reward.engine", instead="local")
    from services.reward.vllm import VllmModel

    return VllmModel(path, section, tokenizer)


def _not_finite(score: float) -> InternalError:
    return InternalError(f"the reward model returned {score}: its weights are damaged or its dtype overflows")
