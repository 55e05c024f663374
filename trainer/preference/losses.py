"""Losses of the preference stage on log-probs of whole answers; knows neither models nor tokens.

Δ of an answer is log π − log π_ref, summed over its tokens or divided by their number; β·Δ is the reward that
the policy implies (Rafailov et al. 2023, equation 5).

Shapes: K answers of one prompt, P pairs of them, E answers with a thumb.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairlead.config.preference import PER_TOKEN, PreferenceSection
from trainer.pair_losses import sigmoid_losses, squared_losses

Pairs = Sequence[tuple[int, int]]
"""(winner, loser), as indices of answers."""


def differences(
    policy_K: Tensor, reference_K: Tensor, tokens_K: Tensor, *, section: PreferenceSection
) -> Tensor:
    """Return Δ [K] of each answer, by the definition of the loss; log π per token for `simpo`."""
    change_K = policy_K if section.loss == "simpo" else policy_K - reference_K
    return change_K / tokens_K if section.loss in PER_TOKEN else change_K


def margins(change_K: Tensor, pairs: Pairs) -> Tensor:
    """Return Δ of the winner minus that of the loser, [P]."""
    index_P2 = torch.tensor(pairs, dtype=torch.long, device=change_K.device)
    return change_K[index_P2[:, 0]] - change_K[index_P2[:, 1]]


def ranking_loss(change_K: Tensor, pairs: Pairs, *, section: PreferenceSection) -> Tensor:
    """Return the loss of one ranking: the mean over its pairs, or over the choices of Plackett and Luce."""
    if section.rankings == "plackett_luce":
        return plackett_luce(section.beta * change_K, pairs)
    return pair_losses(margins(change_K, pairs), section=section).mean()


def pair_losses(margins_P: Tensor, *, section: PreferenceSection) -> Tensor:
    """Return the loss of each pair, [P], by the section's loss and settings."""
    if section.loss == "ipo":
        return squared_losses(margins_P, beta=section.beta)
    return sigmoid_losses(
        margins_P,
        beta=section.beta,
        label_smoothing=section.label_smoothing,
        target_margin=section.target_margin,
    )


def plackett_luce(rewards_K: Tensor, pairs: Pairs) -> Tensor:
    """Return the mean over the answers that beat others of −log P(chosen among itself and those it beats).

    Without ties it is the negative log-likelihood of the ranking (Rafailov et al. 2023, equation 18) divided
    by K − 1, so that a ranking counts as much as a pair. Answers of equal rank are not compared with one
    another.
    """
    beaten: dict[int, list[int]] = {}
    for winner, loser in pairs:
        beaten.setdefault(winner, []).append(loser)
    terms = [
        torch.logsumexp(rewards_K[[winner, *losers]], dim=0) - rewards_K[winner]
        for winner, losers in beaten.items()
    ]
    return torch.stack(terms).mean()


def best(num_answers: int, pairs: Pairs) -> list[int]:
    """Return the answers that no other one beats; at least one."""
    beaten = {loser for _, loser in pairs}
    return [index for index in range(num_answers) if index not in beaten]


def worst(num_answers: int, pairs: Pairs) -> list[int]:
    """Return the answers that beat no other one; at least one."""
    winners = {winner for winner, _ in pairs}
    return [index for index in range(num_answers) if index not in winners]


def kto_losses(change_E: Tensor, good_E: Tensor, baseline: Tensor, *, section: PreferenceSection) -> Tensor:
    """Return the loss of each answer, [E]: λ·(1 − σ(±β·(Δ − z))) with + for a good answer and − for a bad
    one.

    Ethayarajh et al. 2024, equation 8.

    Args:
        change_E: Δ of each answer.
        good_E: whether it is good.
        baseline: z, the divergence of policy and reference; a scalar without gradient.
        section: β and the weights λ.
    """
    inner_E = section.beta * (change_E - baseline)
    desirable_E = section.desirable_weight * (1 - torch.sigmoid(inner_E))
    undesirable_E = section.undesirable_weight * (1 - torch.sigmoid(-inner_E))
    return torch.where(good_E, desirable_E, undesirable_E)


def kto_baseline(mean_change: float) -> float:
    """Return z from the mean Δ of prompts with answers to other prompts, which estimates KL(π ‖ π_ref); not
    negative, as a divergence is not (Ethayarajh et al. 2024, section 4.1).
    """
    return max(0.0, mean_change)
