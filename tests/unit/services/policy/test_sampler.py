"""Sampling compared with exact probabilities and naive loops, and at the ends of the unit interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fairlead.types import SamplingParams
from services.policy.sampler import SamplingPlan, draw, stream_key, truncate, uniforms

DRAWS = 40_000


def plan_of(*rows: SamplingParams, size: int) -> SamplingPlan:
    return SamplingPlan.of(rows, vocabulary_size=size, device=torch.device("cpu"))


def kept_by_hand(logits: list[float], *, temperature: float, top_k: int, top_p: float) -> list[float]:
    """Return the probabilities after truncation, computed by a naive loop; 0 for removed tokens."""
    weights = [math.exp(value / temperature) for value in logits]
    order = sorted(range(len(logits)), key=lambda index: (-weights[index], index))
    if top_k:
        order = order[:top_k]
    total = sum(weights[index] for index in order)
    if top_p < 1:
        kept, mass = [], 0.0
        for index in order:
            kept.append(index)
            mass += weights[index] / total
            if mass >= top_p:
                break
        order = kept
    total = sum(weights[index] for index in order)
    return [weights[index] / total if index in order else 0.0 for index in range(len(logits))]


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.6),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.8),
        SamplingParams(temperature=0.7, top_k=6, top_p=0.9),
    ],
)
def test_draws_follow_the_exact_distribution(sampling: SamplingParams) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 1.5
    exact = kept_by_hand(
        logits.tolist(), temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
    )
    keys = np.full(DRAWS, stream_key(5, 0), np.uint64)
    numbers = torch.from_numpy(uniforms(keys, np.arange(DRAWS, dtype=np.uint64)))
    plan = plan_of(*[sampling] * 1_000, size=12)
    counts, worst = np.zeros(12), 0.0
    for part in numbers.split(1_000):
        tokens, logprobs = draw(logits.expand(1_000, 12), plan, part)
        for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            counts[token] += 1
            worst = max(worst, abs(logprob - math.log(exact[token])))
    assert worst < 1e-5
    drawn = np.array(exact) > 0
    assert counts[~drawn].sum() == 0
    # With a fixed seed this is deterministic: a failure means that the sampler is wrong.
    assert stats.chisquare(counts[drawn], np.array(exact)[drawn] * DRAWS).pvalue > 0.001


@settings(max_examples=75, deadline=None)
@given(
    st.lists(st.integers(-8, 8), min_size=2, max_size=20),
    st.integers(0, 25),
    st.floats(0.01, 1.0),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_truncation_matches_a_naive_loop(
    values: list[int], top_k: int, top_p: float, temperature: float
) -> None:
    logits = torch.tensor([values], dtype=torch.float32)
    by_hand = kept_by_hand([float(v) for v in values], temperature=temperature, top_k=top_k, top_p=top_p)
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))
    masses = np.cumsum([by_hand[index] for index in order])
    cut = truncate(logits / temperature, torch.tensor([[top_k or len(values)]]), torch.tensor([[top_p]]))
    kept = torch.isfinite(cut[0]).tolist()
    expected = [probability > 0 for probability in by_hand]
    if kept != expected:  # a sum of probabilities may meet top_p to the last bit
        exact = kept_by_hand([float(v) for v in values], temperature=temperature, top_k=top_k, top_p=1.0)
        sums = np.cumsum([exact[index] for index in order])
        assert np.abs(sums - top_p).min() < 1e-6, masses
    else:
        assert torch.allclose(cut[0].softmax(-1), torch.tensor(by_hand), atol=1e-6)


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53, 0.5])
def test_tokens_without_probability_are_never_drawn(number: float) -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf], [-200.0, 0.0, -200.0, 30.0, -200.0]])
    tokens, logprobs = draw(
        logits,
        plan_of(SamplingParams(), SamplingParams(), size=5),
        torch.full((2,), number, dtype=torch.float64),
    )
    assert set(tokens.tolist()) <= {1, 3}
    assert torch.isfinite(logprobs).all()


def test_rows_do_not_affect_each_other() -> None:
    rows = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.5, top_k=3),
        SamplingParams(),
        SamplingParams(temperature=2.0, top_p=0.5),
        SamplingParams(temperature=0.0, top_k=1),
    ]
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    numbers = torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    together = draw(logits, plan_of(*rows, size=40), numbers)
    for row, sampling in enumerate(rows):
        single = draw(logits[row : row + 1], plan_of(sampling, size=40), numbers[row : row + 1])
        assert single[0].item() == together[0][row].item()
        assert single[1].item() == pytest.approx(together[1][row].item(), abs=1e-6)


def test_greedy_takes_most_likely_token_with_logprob_at_temperature_one() -> None:
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(3))
    plan = plan_of(*[SamplingParams(temperature=0, top_k=2, top_p=0.1)] * 3, size=30)
    tokens, logprobs = draw(logits, plan, torch.full((3,), 0.99, dtype=torch.float64))
    assert tokens.tolist() == logits.argmax(-1).tolist()
    expected = logits.double().log_softmax(-1).amax(-1)
    assert torch.allclose(logprobs.double(), expected, atol=1e-6)


def test_nan_logits_give_nan_logprob() -> None:
    logits = torch.full((1, 8), math.nan)
    tokens, logprobs = draw(
        logits, plan_of(SamplingParams(), size=8), torch.tensor([0.5], dtype=torch.float64)
    )
    assert 0 <= tokens.item() < 8
    assert math.isnan(logprobs.item())


def test_streams_differ_and_do_not_depend_on_the_batch() -> None:
    keys = np.array(
        [stream_key(seed, sample) for seed in (0, 1, -1, 2**62) for sample in range(50)], np.uint64
    )
    assert len(set(keys.tolist())) == len(keys)
    positions = np.arange(len(keys), dtype=np.uint64)
    together = uniforms(keys, positions)
    single = [uniforms(keys[i : i + 1], positions[i : i + 1])[0] for i in range(len(keys))]
    assert together.tolist() == single


def test_stream_is_uniform_and_uncorrelated() -> None:
    count = 50_000
    for samples, positions in ((1, count), (count, 1)):
        keys = np.repeat(np.array([stream_key(9, s) for s in range(samples)], np.uint64), positions)
        numbers = uniforms(keys, np.tile(np.arange(positions, dtype=np.uint64), samples))
        assert ((numbers >= 0) & (numbers < 1)).all()
        assert stats.kstest(numbers, "uniform").pvalue > 0.001
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
