"""The figures of the outcome; also on the real data, if present."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from examples.rotten_tomatoes import judge, outcome
from examples.rotten_tomatoes.outcome import Judged
from fairlead.config import load
from fairlead.data.records import load_demonstrations, load_preferences, load_prompts
from fairlead.data.sentences import load_parts

ROOT = Path(__file__).parents[3]
SENTENCES = ROOT.parent / "shared" / "data" / "rotten_tomatoes" / "sentences.jsonl"
needs_sentences = pytest.mark.skipif(
    not SENTENCES.is_file(), reason="../shared/data/rotten_tomatoes is absent"
)


def _judged(*groups: tuple[float, ...]) -> list[Judged]:
    return [
        Judged(f"p{n}", tuple(f"p{n} text {k}" for k in range(len(g))), g, (True,) * len(g))
        for n, g in enumerate(groups)
    ]


def test_summary_and_table_of_the_outcome() -> None:
    before = _judged((0.9, 0.1), (0.2, 0.4), (0.6, 0.3), (0.1, 0.2))
    after = _judged((0.9, 0.8), (0.7, 0.4), (0.6, 0.9), (0.6, 0.2))
    found = outcome.summary(before, after, seed=0)
    assert found["positive_before"] == pytest.approx(2 / 8)
    assert found["positive_after"] == pytest.approx(6 / 8)
    assert found["gain"] == pytest.approx(0.5)
    assert found["gain_interval"] == pytest.approx((0.5, 0.5)), "every prompt gained one of two"
    assert found["words_before"] == 3
    # "p0 text", "p1 text", …, and "text 0", "text 1", among two pairs of each of eight texts.
    assert found["distinct_2_before"] == pytest.approx((4 + 2) / 16)
    text = outcome.table({**found, "judge": {"accuracy": 0.7}, "ppo": {"kl": 2.5}})
    assert "Distinct-2 is 1.00 of its value before; KL to the reference 2.5 nats" in text
    assert "| judged positive | 25.0% | 75.0% |" in text
    assert "Gain in the share judged positive: +50.0%, 95% interval +50.0% to +50.0%" in text
    assert text.count("\n| **p") == 4


def test_interval_contains_zero_without_an_effect() -> None:
    rng = random.Random(4)
    groups = [tuple(rng.random() for _ in range(3)) for _ in range(80)]
    other = [tuple(rng.random() for _ in range(3)) for _ in range(80)]
    low, high = outcome.summary(_judged(*groups), _judged(*other), seed=0)["gain_interval"]
    assert low < 0 < high


@needs_sentences
def test_three_parts_of_the_real_sentences_are_disjoint() -> None:
    config = load(ROOT / "configs" / "rotten_tomatoes.toml")
    assert config.data_path(config.data.sentences) == SENTENCES.resolve()
    parts = load_parts(SENTENCES, prompt_words=config.data.prompt_words, seed=config.seed)
    texts = [{s.text for s in part} for part in (parts.demonstrations, parts.preferences, parts.judge)]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert [len(part) for part in texts] == [3_863, 2_895, 1_717]
    demonstrations, preferences = load_demonstrations(config), load_preferences(config)
    assert {d.prompt + d.completion for d in (*demonstrations.train, *demonstrations.heldout)} <= texts[0]
    assert {t for p in (*preferences.train, *preferences.heldout) for t in (p.chosen, p.rejected)} <= texts[1]
    assert len(load_prompts(config).heldout) > 300


@needs_sentences
def test_judge_is_accurate_on_unseen_sentences() -> None:
    parts = load_parts(SENTENCES, prompt_words=3, seed=0)
    critic = judge.train(parts.judge)
    assert 0.67 < judge.accuracy(critic, parts.preferences) < 0.75
