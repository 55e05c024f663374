"""Policy losses and their gradients against naive loops."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from dataclasses import replace

import pytest
import torch

from fairlead.config.training import OF_PAIRS, PpoSection
from trainer.ppo import objective
from trainer.ppo.losses import LOSSES, Aggregation, LossTokens

OLD = [-1.0, -2.0, -0.5, -3.0, -1.0, -1.0]
CHANGES = [0.0, 0.5, -0.6, 0.1, -0.1, 2.0]
ADVANTAGES = [1.0, -2.0, 0.5, 3.0, -1.0, 0.7]


def tokens() -> LossTokens:
    logprobs = [old + change for old, change in zip(OLD, CHANGES, strict=True)]
    logprobs_N = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    old_N, advantages_N = (torch.tensor(one, dtype=torch.float64) for one in (OLD, ADVANTAGES))
    return LossTokens(logprobs_N, old_N, advantages_N, torch.tensor([0, 0, 0, 1, 1, 1]), old_N - 0.3, 0.5)


def gradient_of(given: LossTokens, loss_N: torch.Tensor) -> list[float]:
    loss_N.sum().backward()
    return given.logprobs_N.grad.tolist()


@pytest.mark.parametrize("high", [None, 0.5])
def test_cispo_weights_the_logprob_of_every_token_by_its_clipped_ratio(high):
    given = tokens()
    found = LOSSES["cispo"](given, PpoSection(clip_range=0.2, clip_range_high=high))
    losses, gradients, clipped = [], [], []
    for old, change, advantage in zip(OLD, CHANGES, ADVANTAGES, strict=True):
        weight = min(max(math.exp(change), 0.8), 1.2 if high is None else 1 + high)
        losses.append(-weight * advantage * (old + change))
        gradients.append(-weight * advantage)  # the weight is a constant
        clipped.append(weight != math.exp(change))
    assert found.loss_N.tolist() == pytest.approx(losses, abs=1e-12)
    assert found.ratios_N.tolist() == pytest.approx([math.exp(change) for change in CHANGES], abs=1e-12)
    assert found.is_clipped_N.tolist() == clipped
    assert gradient_of(given, found.loss_N) == pytest.approx(gradients, abs=1e-12)


def test_ppo_clips_the_ratio_in_the_direction_of_the_advantage():
    given = tokens()
    found = LOSSES["ppo"](given, PpoSection(clip_range=0.2))
    losses, gradients, clipped = [], [], []
    for change, advantage in zip(CHANGES, ADVANTAGES, strict=True):
        ratio = math.exp(change)
        losses.append(-min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage))
        clipped.append(ratio > 1.2 if advantage > 0 else ratio < 0.8)
        gradients.append(0.0 if clipped[-1] else -ratio * advantage)
    assert found.loss_N.tolist() == pytest.approx(losses, abs=1e-12)
    assert found.is_clipped_N.tolist() == clipped
    assert gradient_of(given, found.loss_N) == pytest.approx(gradients, abs=1e-12)


ROWS = [0, 0, 0, 1, 1, 1]


def test_gspo_clips_the_geometric_mean_of_an_answer_and_its_gradient_is_that_of_the_paper():
    """Equation 5 of the paper, with one advantage for each answer, and its gradient by autograd."""
    given = tokens()
    advantages = [1.0, 1.0, 1.0, -2.0, -2.0, -2.0]
    given = replace(given, advantages_N=torch.tensor(advantages, dtype=torch.float64))
    for low, high in ((0.2, 0.2), (0.01, 0.02)):
        found = LOSSES["gspo"](given, PpoSection(clip_range=low, clip_range_high=high))
        formula_N = given.logprobs_N.detach().clone().requires_grad_()
        losses = []
        for answer, advantage in ((slice(0, 3), 1.0), (slice(3, 6), -2.0)):
            ratio = (formula_N[answer] - given.old_logprobs_N[answer]).mean().exp()
            losses.append(-torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage))
        torch.stack(losses).sum().backward()
        answers = found.loss_N.reshape(2, 3)
        assert answers.mean(1).tolist() == pytest.approx([one.item() for one in losses], abs=1e-12)
        given.logprobs_N.grad = None
        answers.mean(1).sum().backward()
        assert given.logprobs_N.grad.tolist() == pytest.approx(formula_N.grad.tolist(), abs=1e-12)


def loss_of_a_pair(name: str, best: list[float], worst: list[float], gap: float, beta: float) -> float:
    """By definition, from log π − log π_ref of the tokens of both answers."""

    def minus_log_sigmoid(value: float) -> float:
        return math.log1p(math.exp(-value))

    if name == "online_ipo":
        return (sum(best) / len(best) - sum(worst) / len(worst) - 1 / (2 * beta)) ** 2
    inner = beta * (sum(best) - sum(worst))
    right = 1.0 if name == "online_dpo" else 1 / (1 + math.exp(-gap))
    return right * minus_log_sigmoid(inner) + (1 - right) * minus_log_sigmoid(-inner)


@pytest.mark.parametrize("name", sorted(OF_PAIRS))
def test_losses_of_pairs_and_their_gradients_equal_a_loop(name):
    """Three pairs of answers of different lengths, as one micro-batch and as two; gradient by differences."""
    draw = random.Random(7)
    lengths, gaps, beta = [1, 4, 3, 2, 2, 5], [0.4, 2.0, 0.01], 0.3
    rows = [row for row, length in enumerate(lengths) for _ in range(length)]
    policy, old, reference = ([draw.gauss(-2, 1) for _ in rows] for _ in range(3))

    def naive(policy: list[float]) -> list[float]:
        changes = [
            [policy[i] - reference[i] for i, row in enumerate(rows) if row == wanted]
            for wanted in range(len(lengths))
        ]
        return [loss_of_a_pair(name, *changes[2 * k : 2 * k + 2], gap, beta) for k, gap in enumerate(gaps)]

    section = PpoSection(estimator="pairs", loss=name, num_samples=2)
    aggregation = Aggregation.of(section.aggregation, lengths, max_new_tokens=10)
    policy_N = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    given = [policy_N, *(torch.tensor(one, dtype=torch.float64) for one in (old, reference))]
    advantages_N = torch.tensor([gaps[row // 2] * (-1) ** row for row in rows], dtype=torch.float64)
    rows_N = torch.tensor(rows)
    totals, figures = [], Counter()
    for own_N in (rows_N < 2, rows_N >= 2, rows_N < 0):  # the last one fills up a rank
        logprobs_N, old_N, reference_N = (one[own_N] for one in given)
        first = int(rows_N[own_N].min()) if own_N.any() else 0
        found = LOSSES[name](
            LossTokens(logprobs_N, old_N, advantages_N[own_N], rows_N[own_N] - first, reference_N, beta),
            section,
        )
        lengths_N = torch.tensor([lengths[row] for row in rows_N[own_N]])
        totals.append(aggregation.total(found.loss_N, lengths_N) / aggregation.divisor)
        figures.update(found.of_pairs)
        assert not found.is_clipped_N.any()
    loss = torch.stack(totals).sum()
    loss.backward()
    assert loss.item() == pytest.approx(statistics.mean(naive(policy)), abs=1e-12)
    for index in range(len(rows)):
        near = [[value + step * (i == index) for i, value in enumerate(policy)] for step in (-1e-5, 1e-5)]
        low, high = (statistics.mean(naive(one)) for one in near)
        assert policy_N.grad[index].item() == pytest.approx((high - low) / 2e-5, abs=1e-8)
    change = [ours - theirs for ours, theirs in zip(policy, reference, strict=True)]
    sums = [sum(change[i] for i, row in enumerate(rows) if row == wanted) for wanted in range(len(lengths))]
    divided = [
        one / (length if name == "online_ipo" else 1) for one, length in zip(sums, lengths, strict=True)
    ]
    margins = [best - worst for best, worst in zip(divided[::2], divided[1::2], strict=True)]
    assert figures == {
        "accuracy": sum(margin > 0 for margin in margins),
        "margin": pytest.approx(beta * sum(margins)),
        "chosen_change": pytest.approx(sum(sums[::2])),
        "rejected_change": pytest.approx(sum(sums[1::2])),
    }


@pytest.mark.parametrize(
    ("name", "expected"), [("tokens", 21 / 6), ("sequences", (1.5 + 4.5) / 2), ("constant", 21 / 20)]
)
def test_aggregation_divides_by_numbers_of_the_whole_step(name, expected):
    """Losses 1 2 | 3 4 5 6 of two answers, as one micro-batch and as two; at most 10 tokens."""
    loss_N, lengths_N = torch.tensor([1.0, 2, 3, 4, 5, 6]), torch.tensor([2, 2, 4, 4, 4, 4])
    aggregation = Aggregation.of(name, [2, 4], max_new_tokens=10)
    whole = aggregation.total(loss_N, lengths_N) / aggregation.divisor
    split = sum(aggregation.total(loss_N[part], lengths_N[part]) for part in (slice(0, 2), slice(2, 6)))
    assert float(whole) == pytest.approx(expected)
    assert float(split / aggregation.divisor) == pytest.approx(expected)


def test_gradient_of_the_kl_loss_is_unbiased_for_the_divergence():
    """Over all outcomes of one token: E_old[loss] = KL(π ‖ π_ref), and so are the gradients."""
    draw = torch.Generator().manual_seed(2)
    logits, old, reference = torch.randn(3, 7, generator=draw, dtype=torch.float64).log_softmax(-1)
    exact, sampled = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    logprobs = exact.log_softmax(-1)
    divergence = (logprobs.exp() * (logprobs - reference)).sum()
    divergence.backward()
    expected = (old.exp() * objective.kl_loss(sampled.log_softmax(-1), old, reference)).sum()
    expected.backward()
    assert expected.item() == pytest.approx(divergence.item(), abs=1e-12)
    assert sampled.grad.tolist() == pytest.approx(exact.grad.tolist(), abs=1e-12)
    far = torch.tensor([-700.0, -0.0]).requires_grad_()
    objective.kl_loss(far, torch.tensor([0.0, -700.0]), torch.tensor([0.0, -700.0])).sum().backward()
    assert far.grad.isfinite().all()


def test_weights_of_the_behaviour_policy_are_masked_by_token_or_by_the_geometric_mean_of_an_answer():
    behaviour_N = torch.zeros(6, dtype=torch.float64)
    ratios = [0.4, 1.0, 6.0, 0.4, 0.4, 0.5]
    proximal_N = torch.tensor([math.log(ratio) for ratio in ratios], dtype=torch.float64)
    masked_N = objective.masked_weights(proximal_N, behaviour_N, low=0.5 - 1e-9, high=5.0)
    assert masked_N.tolist() == pytest.approx([0.0, 1.0, 0.0, 0.0, 0.0, 0.5])
    # Geometric means 1.34 and 0.43: the first answer counts, its weights up to the limit.
    by_answer_N = objective.sequence_masked_weights(
        proximal_N, behaviour_N, torch.tensor(ROWS), low=0.5, high=5.0
    )
    assert by_answer_N.tolist() == pytest.approx([0.4, 1.0, 5.0, 0.0, 0.0, 0.0])


def test_overlong_penalty_rises_over_the_buffer():
    """20 tokens at most, a buffer of 4: free up to 16, all of the penalty at 20."""
    section = PpoSection(overlong_penalty=2.0, overlong_buffer_tokens=4)
    found = objective.overlong_penalties(torch.tensor([1, 16, 17, 18, 20]), section, max_new_tokens=20)
    assert found.tolist() == [0.0, 0.0, 0.5, 1.0, 2.0]
