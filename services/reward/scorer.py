"""The reward model at work: items → ids → scalars. Knows torch and the model, but no wire and no queue."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence

import torch

from fairlead import metrics
from fairlead.config.serving import RewardSection
from fairlead.errors import InternalError, InvalidInput
from fairlead.nn import loading
from fairlead.nn.compiling import compile_model
from fairlead.nn.ensemble import load_ensemble, member_paths
from fairlead.nn.linear import pack_linears
from fairlead.nn.reward_model import RewardModel
from fairlead.types import ModelInfo, RewardInfo, ScoreItem, TextPair, WholeText
from services.batching.packing import Packing
from services.reward.compute import forward
from services.reward.encoded import Encoded
from services.reward.text_reader import TextReader
from services.runtime import limits

logger = logging.getLogger(__name__)


class RewardScorer:
    """One reward model, or an ensemble that is served as one, on one device."""

    def __init__(
        self, path: str, section: RewardSection, *, counts: metrics.RewardMetrics | None = None
    ) -> None:
        """Loads model and tokenizer.

        Args:
            path: folder or hub id.
            section: how it computes, and limits.
            counts: where to count what need not be computed twice.

        Raises:
            ModelLoadError: if that cannot be done, or the checkpoint has no reward head.
            ConfigError: if the section asks for what the model does not allow.
        """
        loading.set_threads(section)
        self._section = section
        self._tokenizer = loading.load_tokenizer(member_paths(path)[0])
        # A tokenizer that was saved with padding or truncation changes itself when it is called.
        self._tokenizing = threading.Lock()
        self._reward = load_ensemble(path, section)
        self._device = loading.torch_device(section.device)
        first = self._reward.members[0]
        self._reader = TextReader(path, self._tokenizer, section, model=first)
        loading.check_vocabulary(path, first.model, self._tokenizer)
        embedding = first.body.get_input_embeddings()
        assert isinstance(embedding, torch.nn.Embedding)
        self.info = RewardInfo(
            model=ModelInfo(
                model_id=path,
                tokenizer_fingerprint=loading.tokenizer_fingerprint(self._tokenizer),
                vocabulary_size=embedding.num_embeddings,
                max_sequence_tokens=self._longest(first),
                dtype=section.dtype,
            ),
            model_version=self._reward.version,
            calibration_temperature=section.calibration_temperature or self._reward.temperature,
        )
        """What is served."""
        self._make_fast(path)
        self._forward = forward.choose(
            self._reward, section, longest=self.info.model.max_sequence_tokens, counts=counts
        )

    def _make_fast(self, path: str) -> None:
        """Changes how the models compute, once their version is known."""
        for member in self._reward.members:
            if self._section.pack_weights and self._device.type == "cpu":
                count = pack_linears(member.body)
                logger.info("%d linear layers of %r are laid out for oneDNN", count, path)
            if self._section.compile:
                compile_model(member.model if member.is_encoder else member.body, path=path)

    @property
    def packing(self) -> Packing[tuple[int, ...]]:
        """What batches are cheap."""
        return self._forward.packing

    def close(self) -> None:
        """Frees what is kept between requests; it may go on scoring."""
        self._forward.close()

    def _longest(self, model: RewardModel) -> int:
        limit = loading.max_sequence_tokens(model.model, self._section.max_sequence_tokens)
        # RoBERTa has positions for padding, too, and only its tokenizer says how many are left.
        return min(limit, self._tokenizer.model_max_length) if model.is_encoder else limit

    def encode(self, items: Sequence[ScoreItem]) -> list[tuple[int, ...]]:
        """Ids of prompt and response together, checked against the model's limits.

        Raises:
            InvalidInput: for the first item that cannot be scored.
        """
        limits.check_count("items", len(items), limit=self._section.batching.max_items)
        return [self._encode(index, item) for index, item in enumerate(items)]

    def score(self, sequences: Sequence[tuple[int, ...]]) -> list[float | Exception]:
        """Scalar of each sequence; one that is not finite is an error of that sequence alone."""
        return self.prepare(sequences)()

    def prepare(self, sequences: Sequence[tuple[int, ...]]) -> Callable[[], list[float | Exception]]:
        """Builds the tensors of a batch; what it returns gives what `score` does."""
        compute = self._forward.prepare(sequences)

        @torch.inference_mode()
        def run() -> list[float | Exception]:
            return [score if math.isfinite(score) else _not_finite(score) for score in compute().tolist()]

        return run

    def _encode(self, index: int, item: ScoreItem) -> tuple[int, ...]:
        model = self.info.model
        if isinstance(item, TextPair):
            with self._tokenizing:
                sequence = self._reader.read(index, item)
            field = "items.text"
        elif isinstance(item, WholeText):
            with self._tokenizing:
                sequence = self._reader.read_whole(index, item)
            field = "items.whole_text"
        else:
            if self._reward.members[0].is_encoder:
                raise InvalidInput(
                    "items.tokens", index=index, got="ids", allowed="text: the model is an encoder"
                )
            size = model.vocabulary_size
            ids = item.prompt_token_ids
            limits.check_token_ids(
                "items.tokens.prompt_token_ids", ids, vocabulary_size=size, index=index, allow_empty=True
            )
            ids = item.response_token_ids
            limits.check_token_ids("items.tokens.response_token_ids", ids, vocabulary_size=size, index=index)
            sequence = Encoded(item.prompt_token_ids, item.response_token_ids)
            field = "items.tokens"
        limits.check_sequence_tokens(field, len(sequence), limit=model.max_sequence_tokens, index=index)
        return sequence


def _not_finite(score: float) -> InternalError:
    return InternalError(f"the reward model gave {score}: its weights are damaged or its dtype overflows")
