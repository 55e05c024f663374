"""Two ways to run a batch through the members of an ensemble: padded to the longest, or without padding.

Knows torch and the models, but no text and no queue. Which way a model goes is found out when it is loaded.

Shapes: B sequences, T positions, M members.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fairlead import metrics
from fairlead.config.serving import RewardSection
from fairlead.errors import ConfigError
from fairlead.nn import trial
from fairlead.nn.ensemble import RewardEnsemble, combine
from services.batching.packing import Packing, PaddedPacking, SharedPacking
from services.reward.compute import segments
from services.reward.compute.prefix_sharing import MIN_TOKENS, Planner, PrefixCache
from services.reward.item_reader import EncodedItem, prompt_key

logger = logging.getLogger(__name__)

Ids = tuple[int, ...]

_MOVING_POSITIONS = ("dynamic", "longrope")
"""Rotary positions that depend on the longest of the batch: a score would depend on its company."""


class Forward(Protocol):
    """Runs batches."""

    @property
    def packing(self) -> Packing[Ids]:
        """What batches are cheap to run."""
        ...

    def prepare(self, sequences: Sequence[Ids]) -> Callable[[], Tensor]:
        """Builds the tensors of a batch; what it returns runs the model and gives float32 scores [B]."""
        ...

    def close(self) -> None:
        """Frees what is kept between batches."""
        ...


class PaddedForward:
    """Every model can."""

    def __init__(self, reward: RewardEnsemble, device: torch.device) -> None:
        self._reward = reward
        self._device = device
        self.packing: Packing[Ids] = PaddedPacking[Ids]()

    def prepare(self, sequences: Sequence[Ids]) -> Callable[[], Tensor]:
        """As `Forward.prepare`."""
        lengths_B = torch.tensor([len(sequence) for sequence in sequences])
        tokens_BT = torch.zeros(len(sequences), int(lengths_B.max()), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            tokens_BT[row, : len(sequence)] = torch.tensor(sequence)
        return lambda: self._reward.scores(tokens_BT.to(self._device), lengths_B.to(self._device))

    def close(self) -> None:
        """Nothing is kept."""


class SegmentForward:
    """For decoders whose attention transformers lets us replace."""

    def __init__(
        self,
        reward: RewardEnsemble,
        section: RewardSection,
        *,
        longest: int,
        reward_metrics: metrics.RewardMetrics | None,
    ) -> None:
        """
        Args:
            reward: the models.
            section: whether beginnings are shared, and how much of them is kept.
            longest: tokens of the longest sequence accepted.
            reward_metrics: where to count.
        """
        self._reward, self._share, self._longest = reward, section.share_prompts, longest
        self._metrics = reward_metrics
        self._cache = PrefixCache(
            section.prefix_cache_bytes if self._share else 0, reward_metrics=reward_metrics
        )
        self.packing: Packing[Ids] = SharedPacking[Ids](prompt_key if self._share else lambda _: (None, 0))

    def prepare(self, sequences: Sequence[Ids]) -> Callable[[], Tensor]:
        """As `Forward.prepare`."""
        plan = Planner(sequences, self._cache, self._share).plan()
        if self._metrics is not None:
            found = sum(segment.cached.length for segment in plan.segments if segment.cached)
            self._metrics.shared_tokens.inc(max(0, sum(map(len, sequences)) - len(plan.ids) - found))
        works = [
            segments.layout(
                plan, member=m, longest=self._longest, dtype=member.body.dtype, device=member.device
            )
            for m, member in enumerate(self._reward.members)
        ]

        def run() -> Tensor:
            pairs = zip(self._reward.members, works, strict=True)
            scores_MB = torch.stack([segments.scores(member, work) for member, work in pairs])
            for entry, is_prompt in segments.cached(plan, works):
                self._cache.put(entry, is_prompt=is_prompt)
            return combine(scores_MB, rule=self._reward.rule, std_weight=self._reward.std_weight)

        return run

    def close(self) -> None:
        """Forgets the beginnings that were kept."""
        self._cache.clear()


def choose(
    reward: RewardEnsemble,
    section: RewardSection,
    *,
    longest: int,
    reward_metrics: metrics.RewardMetrics | None = None,
) -> Forward:
    """The way that the section asks for, or the better one that the models allow.

    Raises:
        ConfigError: for `segments` with models that do not allow it; says why.
    """
    device = reward.device
    padded = PaddedForward(reward, device)
    asked = section.attention
    if section.compile or asked == "padded" or (asked == "auto" and device.type != "cpu"):
        return padded
    name = type(reward.members[0].model).__name__
    reason = _obstacle(reward, longest)
    if not reason:
        probe = section.model_copy(update={"share_prompts": True, "prefix_cache_bytes": 64 << 20})
        ours = SegmentForward(reward, probe, longest=longest, reward_metrics=None)
        reason = trial.obstacle(lambda: _difference(ours, padded, reward))
        ours.close()
    if not reason:
        return SegmentForward(reward, section, longest=longest, reward_metrics=reward_metrics)
    if asked == "segments":
        raise ConfigError("reward.attention", got=f"segments for {name} ({reason})", allowed="auto or padded")
    logger.info("%s pads its batches and shares no prompts: %s", name, reason)
    return padded


def _obstacle(reward: RewardEnsemble, longest: int) -> str:
    """Why not to try at all."""
    for member in reward.members:
        config = member.body.config
        rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        kind = rotary.get("rope_type") or rotary.get("type")
        if member.is_encoder:
            return "it is an encoder"
        if kind in _MOVING_POSITIONS:
            return f"its positions ({kind}) depend on the longest sequence of a batch"
    return "" if longest >= 2 * MIN_TOKENS + 2 else f"its sequences have at most {longest} tokens"


def _difference(ours: SegmentForward, padded: PaddedForward, reward: RewardEnsemble) -> str:
    """Holds a tree of sequences, and then one that goes on from the cache, against one at a time."""
    embedding = reward.members[0].body.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Embedding)
    size = embedding.num_embeddings
    stem = tuple((7 * n + 3) % size for n in range(MIN_TOKENS + 1))
    answers = [tuple((m * n + 5) % size for n in range(m)) for m in (1, 4, MIN_TOKENS)]
    batch: list[Ids] = [EncodedItem(stem, answer) for answer in answers]
    batch += [answers[2], (5 % size,)]
    tolerance = trial.tolerance(reward.members[0].body.dtype)
    for _ in range(2):
        found = ours.prepare(batch)().tolist()
        for sequence, score in zip(batch, found, strict=True):
            alone = float(padded.prepare([sequence])())
            if abs(score - alone) > tolerance * max(1.0, abs(alone)):
                return f"segments score {score:.6g} instead of {alone:.6g}"
    return ""
