"""Losses of pairs of answers, one of which is preferred: DPO and IPO.

The preference stage uses them on comparisons of a file, PPO's online DPO on the answers of a group. Δ of an
answer is log π − log π_ref; a margin is Δ of the preferred answer minus that of the other.

Shapes: P pairs.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def sigmoid_losses(
    margins_P: Tensor, *, beta: float, label_smoothing: float | Tensor = 0.0, target_margin: float = 0.0
) -> Tensor:
    """Return −(1−ε)·log σ(z) − ε·log σ(−z) with z = β·margin − γ of each pair, [P].

    DPO (Rafailov et al. 2023, equation 7), conservative DPO for ε > 0 (Mitchell 2023), SimPO (Meng et al.
    2024, equation 6).

    Args:
        margins_P: the margins, with gradient.
        beta: β.
        label_smoothing: ε, the probability that the other answer is better; of all pairs, or of each [P].
        target_margin: γ.
    """
    inner_P = beta * margins_P - target_margin
    losses_P = -(1 - label_smoothing) * logsigmoid(inner_P)
    if isinstance(label_smoothing, float) and not label_smoothing:
        return losses_P
    return losses_P - label_smoothing * logsigmoid(-inner_P)


def squared_losses(margins_P: Tensor, *, beta: float) -> Tensor:
    """Return (margin − 1/(2β))² of each pair, [P]: IPO (Azar et al. 2023, equation 17).

    Δ is per token, so that β means the same for answers of any length.
    """
    return (margins_P - 1 / (2 * beta)) ** 2
