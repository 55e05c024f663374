"""Deterministic runs: refused settings, defaults, and numbers that do not depend on other requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config import load
from fairlead.errors import ConfigError
from fairlead.types import SamplingParams, TokenPair
from services.batching.batcher import MicroBatcher
from services.reference.model import Lookup
from services.reference.scorer import ReferenceScorer
from services.reward.scorer import RewardScorer
from tests.tiny import tiny_causal_lm, tiny_reward_model
from tests.unit.services.policy.policy_world import model_without_end, request, running

PAIRS = [
    TokenPair(tuple(range(4, 4 + length % 23 + 1)), tuple(range(9, 9 + length % 17 + 1)))
    for length in range(40)
]


def test_settings_that_are_not_set_get_deterministic_defaults():
    config = load(overrides={"deterministic": True, "policy.threads": 3})
    assert (config.policy.max_slots, config.policy.threads, config.policy.device) == (1, 3, "cpu")
    for section in (config.reward, config.reference):
        assert (section.batching.max_batch_tokens, section.threads, section.device) == (1, 1, "cpu")
    assert (config.ppo.threads, config.ppo.device) == (1, "cpu")
    plain = load()
    assert (plain.policy.max_slots, plain.policy.threads, plain.reward.batching.max_batch_tokens) == (
        32,
        0,
        8192,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ppo.max_staleness": 2}, "ppo.max_staleness: got 2, allowed: 0 with deterministic = true"),
        ({"ppo.compile": True}, "ppo.compile: got True, allowed: False with deterministic = true"),
        ({"policy.max_slots": 8}, "policy.max_slots: got 8, allowed: 1 with deterministic = true"),
        (
            {"reward.batching.max_batch_tokens": 64},
            "reward.batching.max_batch_tokens: got 64, allowed: 1 with",
        ),
        ({"reference.threads": 0}, "reference.threads: got 0, allowed: a number above 0"),
        ({"reward.device": "cuda"}, "reward.device: got 'cuda', allowed: 'cpu' with deterministic = true"),
        (
            {"data.fresh_rankings": "new.jsonl", "guard.action": "stop"},
            "data.fresh_rankings: got 'new.jsonl', allowed: empty with deterministic = true",
        ),
    ],
)
def test_setting_that_breaks_determinism_is_refused_by_name(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError) as caught:
        load(overrides={"deterministic": True, **settings})
    assert str(caught.value).startswith(message)
    load(overrides=settings)


def test_environment_can_set_deterministic(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAIRLEAD_DETERMINISTIC", "true")
    assert load().policy.max_slots == 1


async def test_completion_does_not_depend_on_other_requests(tmp_path: Path):
    model = model_without_end(tmp_path)
    sampling = SamplingParams(max_new_tokens=24, seed=3)
    prompts = [pair.prompt_token_ids for pair in PAIRS[:10]]

    async def single(prompt: tuple[int, ...]) -> object:
        async with running(model, max_slots=1) as engine:
            return await engine.generate(request(sampling, prompt), deadline=None)

    async with running(model, max_slots=1) as engine:
        together = await asyncio.gather(
            *(engine.generate(request(sampling, prompt), deadline=None) for prompt in reversed(prompts))
        )
    assert list(reversed(together)) == [await single(prompt) for prompt in prompts]


async def test_scores_and_log_probs_do_not_depend_on_other_requests(tmp_path: Path):
    config = load(overrides={"deterministic": True})
    reward = RewardScorer(str(tiny_reward_model(tmp_path / "reward")), config.reward)
    reference = ReferenceScorer(str(tiny_causal_lm(tmp_path / "reference")), config.reference)
    sequences = [(*pair.prompt_token_ids, *pair.response_token_ids) for pair in PAIRS]
    lookups = [Lookup(pair, 0.7) for pair in PAIRS]
    for compute, section, items in (
        (reward.score, config.reward.batching, sequences),
        (reference.logprobs, config.reference.batching, lookups),
    ):
        lengths = [len(sequence) for sequence in sequences]
        batcher = MicroBatcher(
            compute,
            section,
            batcher_metrics=metrics.BatcherMetrics(CollectorRegistry()),
            field_name="items",
        )
        async with batcher:
            together = await asyncio.gather(
                *(batcher.submit([item], [size]) for item, size in zip(items, lengths, strict=True))
            )
        assert [result for [result] in together] == [compute([item])[0] for item in items]
