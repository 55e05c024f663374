"""Sequences per second of the reward service's forward pass: padded, without padding, and by segments."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

from benchmarks import lengths, tiny_models
from benchmarks.gpu_check.figures import Figure, skipped
from benchmarks.gpu_check.setting import Setting
from fairlead.config.serving import RewardSection
from fairlead.errors import ConfigError
from fairlead.types import TokenPair
from services.reward.scorer import RewardScorer

_LONGEST = 1_024


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield the rate of each way, and its largest difference from padded scores."""
    shape = setting.shape(setting.models[0])
    shape.num_labels = 1
    path = str(tiny_models.save(setting.folder / "reward", shape, reward=True))
    pairs = _pairs(setting)
    padded: list[float] = []
    for attention in ("padded", "varlen", "segments"):
        section = RewardSection(
            device=setting.device.type, dtype=setting.dtype, attention=attention, prefix_cache_bytes=0
        )
        try:
            scorer = RewardScorer(path, section)
        except ConfigError as error:
            yield skipped(attention, str(error))
            continue
        found = _scores(scorer, pairs, section)
        padded = padded or found
        seconds = setting.seconds(partial(_scores, scorer, pairs, section))
        gap = max(abs(one - other) for one, other in zip(found, padded, strict=True))
        note = f"{len(pairs)} of AlpacaEval's lengths, {setting.dtype}; {gap:.2g} from padded scores"
        yield Figure(f"{setting.models[0]}: {attention}", len(pairs) / seconds, "sequences/s", note)


def _pairs(setting: Setting) -> list[TokenPair]:
    draw = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 500) for _ in range(count))

    found = []
    for prompt, *responses in lengths.groups(setting.pick(64, 1), longest=setting.pick(_LONGEST, 200)):
        question = ids(prompt)
        found += [TokenPair(question, ids(count)) for count in responses]
    return found


def _scores(scorer: RewardScorer, pairs: list[TokenPair], section: RewardSection) -> list[float]:
    """Score all pairs in the batches that the service would choose."""
    waiting, found = scorer.encode(pairs), list[float | Exception]()
    budget = section.batching.max_batch_tokens
    order: list[int] = []
    numbers = list(range(len(waiting)))
    while numbers:
        some = [waiting[number] for number in numbers]
        chosen = scorer.packing.choose(some, list(map(len, some)), max_batch_tokens=budget).indices
        order += [numbers[place] for place in chosen]
        found += scorer.score([some[place] for place in chosen])
        numbers = [number for place, number in enumerate(numbers) if place not in set(chosen)]
    by_number = dict(zip(order, found, strict=True))
    return [_sound(by_number[number]) for number in range(len(waiting))]


def _sound(score: float | Exception) -> float:
    if isinstance(score, Exception):
        raise score
    return score
