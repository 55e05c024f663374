"""Rewards and reference log-probs on a GPU match those on the CPU, with and without shared prompts."""

from __future__ import annotations

import random

import pytest
import torch

from fairlead.config.serving import BatchingSection, ReferenceSection, RewardSection
from fairlead.types import TokenPair
from services.reference.model import Lookup
from services.reference.scorer import ReferenceScorer
from services.reward.compute import varlen
from services.reward.scorer import RewardScorer
from tests.tiny import tiny_causal_lm, tiny_reward_model

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest difference from float32 on the CPU. bfloat16 has 8 bits of mantissa."""


@pytest.fixture(scope="module")
def pairs():
    rng = random.Random(5)

    def ids(count):
        return tuple(rng.randrange(60) for _ in range(count))

    prompts = [ids(length) for length in (1, 7, 30, 60)]
    return [TokenPair(prompt, ids(length)) for prompt in prompts for length in (1, 5, 13, 60)]


def assert_close(found, expected, tolerance):
    found, expected = torch.tensor(found, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
    assert found.isfinite().all()
    assert (found - expected).abs().max() <= tolerance


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch_tokens", [64, 8_192])
@pytest.mark.parametrize("attention", ["varlen", "segments", "padded"])
def test_rewards_match_the_cpu(tmp_path, pairs, dtype, batch_tokens, attention):
    folder = str(tiny_reward_model(tmp_path))
    cpu = RewardScorer(folder, RewardSection(device="cpu"))
    expected = cpu.score(cpu.encode(pairs))
    batching = BatchingSection(max_batch_tokens=batch_tokens)
    gpu = RewardScorer(
        folder, RewardSection(device="cuda", dtype=dtype, batching=batching, attention=attention)
    )
    # Twice: the second time every prompt is in the prefix cache.
    for _ in range(2):
        assert_close(gpu.score(gpu.encode(pairs)), expected, TOLERANCE[dtype])


@pytest.mark.parametrize(("dtype", "kernel"), [("float32", varlen.padded), ("bfloat16", varlen.flash)])
def test_attention_without_padding_is_the_default(tmp_path, dtype, kernel):
    scorer = RewardScorer(str(tiny_reward_model(tmp_path)), RewardSection(device="cuda", dtype=dtype))
    assert isinstance(scorer._forward, varlen.VarlenForward)
    assert scorer._forward._kernel is kernel


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_reference_logprobs_match_the_cpu(tmp_path, pairs, dtype):
    folder = str(tiny_causal_lm(tmp_path))
    lookups = [Lookup(pair, temperature) for pair in pairs for temperature in (0.7, 1.0)]
    expected = ReferenceScorer(folder, ReferenceSection(device="cpu")).logprobs(lookups)
    found = ReferenceScorer(folder, ReferenceSection(device="cuda", dtype=dtype)).logprobs(lookups)
    for row, other in zip(found, expected, strict=True):
        assert_close(row, other, TOLERANCE[dtype])
