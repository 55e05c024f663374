"""One reward model, or an ensemble, on one device, or a rank's part of it: ids → scalars.

Knows torch, but no text, no queue and no wire format, and checks nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

from fairlead import metrics
from fairlead.config.serving import RewardSection
from fairlead.errors import ConfigError
from fairlead.nn import allocator, loading, tensor_parallel
from fairlead.nn.compiling import compile_model
from fairlead.nn.ensemble import load_ensemble, member_paths
from fairlead.nn.linear import pack_linears
from fairlead.nn.reward_model import RewardModel
from services.batching.packing import Packing
from services.reward.compute import forward

logger = logging.getLogger(__name__)

FIELD = "reward.tensor_parallel"
"""The setting that divides a model among ranks."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the service has to know about its model."""

    vocabulary_size: int
    """Rows of the embedding."""
    max_sequence_tokens: int
    """Longest sequence."""
    version: str
    """Digest over the weights."""
    temperature: float
    """Divisor that calibrates scores; 0 if it was not fitted."""
    is_ours: bool
    """Whether Fairlead trained it."""
    is_encoder: bool
    """Whether it is an encoder."""
    answer_end: object
    """How answers end in its training, as saved."""
    is_padded: bool
    """Whether all sequences of a batch are padded to the longest."""
    shares_prompts: bool
    """Whether a prompt that several sequences of a batch share is computed once."""


class LocalModel:
    """Implements `ScoringModel` with a model in this process."""

    def __init__(
        self,
        path: str,
        section: RewardSection,
        tokenizer: PreTrainedTokenizerBase,
        *,
        reward_metrics: metrics.RewardMetrics | None = None,
    ) -> None:
        """Load the model.

        Args:
            path: folder or hub id.
            section: limits, and how to compute. If it divides the model among ranks, this process is one of
                them and has joined the others.
            tokenizer: the tokenizer of the model.
            reward_metrics: metrics of prompt sharing.

        Raises:
            ModelLoadError: the model cannot be loaded, or the checkpoint has no reward head.
            ConfigError: the model does not support a setting of the section.
        """
        loading.set_threads(section)
        self._section = section
        self.failure: Future[None] | None = None
        """Never: this process cannot lose its model."""
        self.reward = load_ensemble(path, section, load=_loader(path, section))
        """The model, or the members."""
        self._device = loading.torch_device(section.device)
        first = self.reward.members[0]
        loading.check_vocabulary(path, first.model, tokenizer)
        longest = _max_sequence_tokens(first, section, tokenizer.model_max_length)
        version = self.reward.version
        self._optimize(path)
        self._heap = allocator.HeapBound() if self._device.type == "cpu" else None
        self._forward = forward.choose(self.reward, section, longest=longest, reward_metrics=reward_metrics)
        self.packing: Packing[tuple[int, ...]] = self._forward.packing
        """How to choose batches that are cheap to compute."""
        self.facts = ModelFacts(
            vocabulary_size=loading.vocabulary_size(first.body),
            max_sequence_tokens=longest,
            version=version,
            temperature=self.reward.temperature,
            is_ours=first.is_ours,
            is_encoder=first.is_encoder,
            answer_end=first.answer_end,
            is_padded=isinstance(self._forward, forward.PaddedForward),
            shares_prompts=isinstance(self._forward, forward.SegmentForward) and section.share_prompts,
        )
        """What the service has to know about it."""

    def prepare(self, sequences: Sequence[tuple[int, ...]]) -> Callable[[], list[float]]:
        """Build the tensors of a batch; return a function that computes the scalar of each sequence."""
        compute = self._forward.prepare(sequences)

        @torch.inference_mode()
        def run() -> list[float]:
            scores: list[float] = compute().tolist()
            if self._heap is not None:
                self._heap.after_batch()
            return scores

        return run

    def close(self) -> None:
        """Free the cache of prompts. The model can still be used."""
        self._forward.close()

    def _optimize(self, path: str) -> None:
        """Change how the models compute, after their version was derived from the weights."""
        for member in self.reward.members:
            # The layers of a divided model belong to transformers' plan.
            divided = self._section.tensor_parallel > 1
            if self._section.pack_weights and self._device.type == "cpu" and not divided:
                count = pack_linears(member.body)
                logger.info("packed the weights of %d linear layers of %r for oneDNN", count, path)
            if self._section.compile:
                compile_model(member.model if member.is_encoder else member.body, path=path)


def _loader(path: str, section: RewardSection) -> loading.Loader | None:
    size = section.tensor_parallel
    if size == 1:
        return None
    if section.compile:
        raise ConfigError("reward.compile", got=True, allowed=f"false, because {FIELD} is {size}")
    for member in member_paths(path):
        division = tensor_parallel.division(member, loading.load_config(member), size, field=FIELD)
    return partial(loading.load_pretrained, distributed_config=division)


def _max_sequence_tokens(model: RewardModel, section: RewardSection, tokenizer_limit: int) -> int:
    limit = loading.max_sequence_tokens(model.model, section.max_sequence_tokens)
    # RoBERTa reserves positions for padding; only its tokenizer knows how many remain.
    return min(limit, tokenizer_limit) if model.is_encoder else limit
