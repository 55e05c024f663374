"""Ways to run a batch through an ensemble: padded to the longest sequence, or without padding.

`choose` decides when a model is loaded. Knows torch and the models, but no text and no queue.

Shapes: B sequences, T positions, M members.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fairlead import metrics
from fairlead.config.serving import RewardSection
from fairlead.errors import ConfigError
from fairlead.nn import trial
from fairlead.nn.ensemble import RewardEnsemble, combine
from fairlead.nn.heads import ScalarHead
from fairlead.nn.reward_model import RewardModel
from fairlead.nn.trial import Comparison, Probe
from services.batching.packing import Packing, PaddedPacking, SharedPacking
from services.reward.compute import segments
from services.reward.compute.prefix_sharing import MIN_TOKENS, Planner, PrefixCache
from services.reward.compute.varlen import Kernel, VarlenForward, kernels_of
from services.reward.item_reader import EncodedItem, prompt_key

logger = logging.getLogger(__name__)

Ids = tuple[int, ...]


class Forward(Protocol):
    """Runs batches of sequences."""

    @property
    def packing(self) -> Packing[Ids]:
        """How to choose batches that are cheap to run."""
        ...

    def prepare(self, sequences: Sequence[Ids]) -> Callable[[], Tensor]:
        """Build the tensors of a batch; return a function that computes its float32 scores [B]."""
        ...

    def close(self) -> None:
        """Free the memory that is kept between batches."""
        ...


class PaddedForward:
    """Pads sequences to the longest of the batch. Works for every model."""

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
        """Do nothing: no memory is kept."""


class SegmentForward:
    """Runs sequences without padding, shared beginnings once; needs replaceable attention."""

    def __init__(
        self,
        reward: RewardEnsemble,
        section: RewardSection,
        reward_metrics: metrics.RewardMetrics | None,
        *,
        longest: int,
    ) -> None:
        """
        Args:
            reward: the models.
            section: whether to share beginnings, and the size of their cache.
            reward_metrics: metrics of sharing.
            longest: tokens of the longest sequence that is accepted.
        """
        self._reward = reward
        self._share = section.share_prompts
        self._longest = longest
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
        """Empty the cache of beginnings."""
        self._cache.clear()


def choose(
    reward: RewardEnsemble,
    section: RewardSection,
    *,
    longest: int,
    reward_metrics: metrics.RewardMetrics | None = None,
) -> Forward:
    """Return the forward that the section asks for, or with `auto` the fastest for the device that the models
    support.

    Raises:
        ConfigError: `segments` or `varlen` is asked for and the models do not support it; gives the reason.
    """
    device = reward.device
    padded = PaddedForward(reward, device)
    asked = section.attention
    if section.compile or asked == "padded":
        return padded
    wanted = ("segments" if device.type == "cpu" else "varlen") if asked == "auto" else asked
    ways = [_segments(longest)] if wanted == "segments" else _varlen(reward, longest)
    name = type(reward.members[0].model).__name__
    for way in ways:
        reason = next(filter(None, (_obstacle(member, way, longest) for member in reward.members)), "")
        if not reason:
            return way.build(reward, section, reward_metrics)
        logger.info("%s is not run by %s: %s", name, way.name, reason)
    if asked != "auto":
        raise ConfigError("reward.attention", got=f"{asked} for {name} ({reason})", allowed="auto or padded")
    logger.info("batches of %s are padded and share no prompts: %s", name, reason)
    return padded


@dataclass(frozen=True, slots=True)
class _Way:
    """A way to run sequences without padding."""

    name: str
    build: Callable[[RewardEnsemble, RewardSection, metrics.RewardMetrics | None], Forward]


def _segments(longest: int) -> _Way:
    return _Way("segments", lambda *given: SegmentForward(*given, longest=longest))


def _varlen(reward: RewardEnsemble, longest: int) -> list[_Way]:
    """Return a way for each kernel that suits the models, the fastest first."""

    def way(kernel: Kernel) -> _Way:
        name = f"varlen with {kernel.__name__} attention"
        return _Way(name, lambda given, *_: VarlenForward(given, longest=longest, kernel=kernel))

    return [way(kernel) for kernel in kernels_of(reward.members[0])]


def _obstacle(member: RewardModel, way: _Way, longest: int) -> str:
    """Return why a member cannot be run without padding; empty if it can."""
    if member.is_encoder:
        return "it is an encoder"
    if longest < 2 * MIN_TOKENS + 2:
        return f"its sequences have at most {longest} tokens"
    return trial.obstacle(member.body, lambda probe: _comparisons(member, way, probe), longest=longest)


def _comparisons(member: RewardModel, way: _Way, probe: Probe) -> Iterator[Comparison]:
    """Compare hidden states of a tree of sequences; the second time, its beginnings may be cached."""
    body, section = member.body, RewardSection(prefix_cache_bytes=64 << 20)
    hidden = RewardEnsemble((replace(member, head=_NoHead(1, std=0).to(member.device)),))
    ours = way.build(hidden, section, None)
    stem = probe.long_ids(MIN_TOKENS + 1)
    batch: list[Ids] = [EncodedItem(stem, probe.ids(length)) for length in (1, 4, MIN_TOKENS)]
    batch += [probe.ids(MIN_TOKENS), probe.ids(2)]
    expected = [trial.own(body, ids, count=1)[0] for ids in batch]
    elsewhere = [trial.own(body, (*probe.ids(len(ids) - 1), ids[-1]), count=1)[0] for ids in batch]
    for _ in range(2):
        found_BH = ours.prepare(batch)()
        yield from map(Comparison, found_BH, expected, elsewhere)
    ours.close()


class _NoHead(ScalarHead):
    """Returns hidden states, which show more than a score does."""

    def forward(self, hidden_NH: Tensor) -> Tensor:
        return hidden_NH
