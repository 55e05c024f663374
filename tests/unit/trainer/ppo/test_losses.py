"""Policy losses and their gradients against naive loops."""

from __future__ import annotations

import math

import pytest
import torch

from fairlead.config.training import PpoSection
from trainer.ppo.losses import LOSSES, LossTokens

OLD = [-1.0, -2.0, -0.5, -3.0, -1.0, -1.0]
CHANGES = [0.0, 0.5, -0.6, 0.1, -0.1, 2.0]
ADVANTAGES = [1.0, -2.0, 0.5, 3.0, -1.0, 0.7]


def tokens() -> LossTokens:
    logprobs = [old + change for old, change in zip(OLD, CHANGES, strict=True)]
    logprobs_N = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    old_N, advantages_N = (torch.tensor(one, dtype=torch.float64) for one in (OLD, ADVANTAGES))
    return LossTokens(logprobs_N, old_N, advantages_N, torch.tensor([0, 0, 0, 1, 1, 1]))


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
