"""Scores by segments equal those of one sequence at a time in transformers, for any batch, tree and cache."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import AutoModelForSequenceClassification, BloomConfig, MistralConfig

from fairlead import metrics
from fairlead.config.serving import RewardSection
from fairlead.errors import ConfigError
from services.reward.compute import segments
from services.reward.compute.prefix_sharing import MAX_TAIL, MIN_TOKENS, CachedPrefix, Planner, PrefixCache
from services.reward.item_reader import EncodedItem
from services.reward.scorer import RewardScorer
from tests import architectures
from tests.architectures import ARCHITECTURES, CONTEXT
from tests.tiny import VOCABULARY_SIZE, tiny_reward_model

Ids = tuple[int, ...]
Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    made: dict[str, Path] = {}

    def once(name: str) -> Path:
        if name not in made:
            made[name] = architectures.reward_model(name, tmp_path_factory.mktemp(name), bias=0.5)
        return made[name]

    return once


def single(path: Path, sequences: list[Ids]) -> list[float]:
    """Scores one at a time in transformers' own model in float64: no padding, no cache, no Fairlead code."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float64)
    bias = getattr(model.config, "fairlead_reward_bias", 0.0)
    # Always reads the last token, where transformers would search for the padding token.
    with torch.inference_mode():
        return [
            float(model.base_model(input_ids=torch.tensor([s]))[0][0, -1] @ model.score.weight[0]) + bias
            for s in sequences
        ]


def families(rng: random.Random, vocabulary: int, count: int) -> list[Ids]:
    """Prompts that share a system turn, responses that share prompts, some differing in the last token."""

    def ids(length: int) -> Ids:
        return tuple(rng.randrange(vocabulary) for _ in range(length))

    system, found = ids(20), list[Ids]()
    for _ in range(count):
        prompt = (*(system if rng.random() < 0.6 else ()), *ids(rng.randint(1, 40)))
        opening = ids(rng.choice((0, 0, 18)))
        for _ in range(rng.randint(1, 5)):
            found.append(EncodedItem(prompt, (*opening, *ids(rng.randint(1, 30)))))
        if rng.random() < 0.5:
            found.append(found[-1])
        if rng.random() < 0.5:
            found.append(tuple(found[-1][:-1]))
    return [*found, (3,), ids(CONTEXT)]


def assert_same(found: list[float | Exception], expected: list[float]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, float)
        assert abs(one - other) <= 1e-5 * max(1.0, abs(other))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_depend_on_their_own_sequence_only(saved: Saved, name: str):
    """Random batches, with and without sharing, with a cache that is large, evicts or is disabled."""
    path = saved(name)
    rng = random.Random(7)
    sequences = families(rng, 200, 6)
    expected = single(path, sequences)
    assert len({round(score, 3) for score in expected}) > len(expected) // 3
    for settings in (
        {},
        {"share_prompts": False},
        {"prefix_cache_bytes": 0},
        {"prefix_cache_bytes": 40_000},
        {"pack_weights": False},
        {"attention": "padded"},
        {"attention": "varlen"},
    ):
        section = RewardSection(device="cpu", **{"attention": "segments"} | settings)
        reward_metrics = metrics.RewardMetrics(registry := CollectorRegistry())
        scorer = RewardScorer(str(path), section, reward_metrics=reward_metrics)
        assert_same(scorer.score(sequences), expected)
        for _ in range(4):
            some = [rng.randrange(len(sequences)) for _ in range(rng.randint(1, 12))]
            assert_same(scorer.score([sequences[i] for i in some]), [expected[i] for i in some])
        shares = section.attention == "segments" and section.share_prompts
        assert bool(registry.get_sample_value("fairlead_reward_shared_tokens_total")) == shares
        hits = registry.get_sample_value("fairlead_reward_prefix_lookups_total", {"result": "hit"})
        assert bool(hits) == (shares and section.prefix_cache_bytes > 0)
        assert registry.get_sample_value("fairlead_reward_prefix_bytes") <= section.prefix_cache_bytes


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_scores_are_close_to_padded_ones(saved: Saved, name: str):
    path = saved(name)
    sequences = families(random.Random(3), 200, 2)
    section = RewardSection(device="cpu", dtype="bfloat16", attention="segments")
    found = RewardScorer(str(path), section).score(sequences)
    padded = RewardScorer(str(path), section.model_copy(update={"attention": "padded"}))
    expected = [padded.score([sequence])[0] for sequence in sequences]
    assert torch.tensor(found).sub(torch.tensor(expected)).abs().median() < 0.05


def test_long_responses_are_cut_into_segments_with_equal_scores(tmp_path: Path):
    path = tiny_reward_model(tmp_path, max_position_embeddings=2_048)
    rng = random.Random(0)

    def ids(length: int) -> Ids:
        return tuple(rng.randrange(VOCABULARY_SIZE) for _ in range(length))

    prompt = ids(300)
    sequences: list[Ids] = [EncodedItem(prompt, ids(length)) for length in (MAX_TAIL * 2 + 5, 700, 1)]
    scorer = RewardScorer(str(path), RewardSection(device="cpu", attention="segments"))
    expected = single(path, sequences)
    for _ in range(2):
        assert_same(scorer.score(sequences), expected)


def visible(plan, index: int) -> tuple[list[int], list[int]]:
    """Ids and positions that the last token of a sequence attends to, according to the plan."""
    row = plan.last_rows[index]
    (segment,) = (s for s in plan.segments if s.start <= row < s.end)
    rows = [r for start, end in (*segment.before, (segment.start, row + 1)) for r in range(start, end)]
    head = list(np.frombuffer(segment.cached.key, dtype=np.int64)) if segment.cached else []
    return head + plan.ids[rows].tolist(), list(range(len(head))) + plan.positions[rows].tolist()


@pytest.mark.parametrize("seed", range(30))
def test_plan_shows_every_token_its_own_sequence(seed: int):
    rng = random.Random(seed)
    cache = PrefixCache(1 << 20)
    for _ in range(3):
        sequences = families(rng, 3 if seed % 2 else 200, rng.randint(1, 6))
        plan = Planner(sequences, cache, share=True).plan()
        for index, sequence in enumerate(sequences):
            assert visible(plan, index) == (list(sequence), list(range(len(sequence))))
        bounds = [(s.start, s.end) for s in plan.segments]
        assert [end for _, end in bounds[:-1]] == [start for start, _ in bounds[1:]]
        assert bounds[-1][1] == len(plan.ids) <= sum(map(len, sequences))
        for keep in plan.keeps:
            rows = [row for start, end in keep.rows for row in range(start, end)]
            head = np.frombuffer(keep.cached.key, dtype=np.int64) if keep.cached else np.array([], np.int64)
            assert np.concatenate([head, plan.ids[rows]]).tobytes() == keep.key
            assert len(keep.key) == 8 * keep.length >= 8 * MIN_TOKENS
            cache.put(CachedPrefix(keep.key, keep.length, {}), is_prompt=keep.is_prompt)


def test_prompt_of_k_responses_is_computed_once():
    prompt = tuple(range(100))
    sequences = [EncodedItem(prompt, (200 + k, *range(10))) for k in range(8)]
    plan = Planner(sequences, PrefixCache(1 << 20), share=True).plan()
    assert len(plan.ids) == 100 + 8 * 11
    assert [keep.length for keep in plan.keeps] == [100]
    assert len(Planner(sequences, None, share=False).plan().ids) == 8 * 111


def entry(name: int, length: int = 20) -> CachedPrefix:
    ids = np.full(length, name, dtype=np.int64)
    return CachedPrefix(
        ids.tobytes(), length, {(0, 0): (torch.zeros(1, length, 4), torch.zeros(1, length, 4))}
    )


def test_cache_stays_within_its_bytes_and_evicts_least_recently_used():
    size = entry(0).num_bytes
    cache = PrefixCache(3 * size)
    whole = [np.full(30, name, dtype=np.int64) for name in range(5)]
    for name in range(3):
        cache.put(entry(name), is_prompt=True)
    assert cache.num_bytes == 3 * size
    assert cache.find(whole[0], 20) is not None
    cache.put(entry(3), is_prompt=True)
    assert cache.num_bytes == 3 * size
    assert [cache.find(ids, 20) is not None for ids in whole] == [True, False, True, True, False]
    assert cache.find(whole[0][:20], 20) is None, "the last token is always computed"
    cache.put(entry(4, length=200), is_prompt=True)
    assert len(cache) == 3, "an entry larger than the cache is not kept"
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_large_cached_beginnings_are_copied_out_of_the_heap():
    batch = torch.randn(2, 4, 400, 32)
    for length, moved in ((4, False), (300, True)):
        kept = {
            (0, 0): (batch[0, :, :length], batch[1, :, :length]),
            (0, 1): (batch[1, :, 1:9], batch[0, :, 1:9]),
        }
        found = segments.apart(kept)
        for place, pair in kept.items():
            for copy, original in zip(found[place], pair, strict=True):
                assert torch.equal(copy, original)
                assert (copy.data_ptr() != original.data_ptr()) == moved


def test_model_without_segment_support_is_padded_and_logs_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"vocab_size": VOCABULARY_SIZE, "num_labels": 1, "pad_token_id": 0, "num_key_value_heads": 2}
    cases = {
        "a sliding window of 9 tokens": MistralConfig(**shape, sliding_window=9),
        "its values differ by": BloomConfig(
            vocab_size=VOCABULARY_SIZE, hidden_size=32, n_layer=2, n_head=4, num_labels=1, pad_token_id=0
        ),
    }
    for number, (reason, config) in enumerate(cases.items()):
        path = tiny_reward_model(tmp_path / str(number))
        AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
        caplog.clear()
        with caplog.at_level("INFO", logger="services.reward.compute.forward"):
            scorer = RewardScorer(str(path), RewardSection(device="cpu"))
        assert reason in caplog.text
        assert "are padded and share no prompts" in caplog.text
        assert all(isinstance(score, float) for score in scorer.score([(5, 6, 7), (8,)]))
        with pytest.raises(
            ConfigError, match=r"reward.attention: got 'segments for .*allowed: auto or padded"
        ):
            RewardScorer(str(path), RewardSection(device="cpu", attention="segments"))
        with pytest.raises(ConfigError, match=r"reward.attention: got 'varlen for "):
            RewardScorer(str(path), RewardSection(device="cpu", attention="varlen"))
