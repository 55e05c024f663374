"""Answers with rewards and log-probs, and a table of how far peers are from us."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SEEDS = 8


GROUP, LONGEST = 4, 8


KINDS = ("ragged", "one token", "zeros", "equal", "large")


BETA = 0.3


EXACT = 1e-12


@dataclass(frozen=True)
class Case:
    """Answers in groups of 4, with rewards and the log-probs of every policy, in float64; 0 after the end."""

    mask_BT: Tensor
    rewards_BT: Tensor
    scores_B: Tensor
    values_BT: Tensor
    logprobs_BT: Tensor
    old_BT: Tensor
    reference_BT: Tensor
    behaviour_BT: Tensor
    advantages_B: Tensor

    @property
    def lengths_B(self) -> Tensor:
        return self.mask_BT.sum(1)

    @property
    def groups_B(self) -> Tensor:
        return torch.arange(len(self.mask_BT)) // GROUP

    @property
    def rows_N(self) -> Tensor:
        return torch.arange(len(self.mask_BT)).repeat_interleave(self.lengths_B)

    @property
    def advantages_BT(self) -> Tensor:
        return self.advantages_B[:, None] * self.mask_BT

    def flat(self, values_BT: Tensor) -> Tensor:
        return values_BT[self.mask_BT]


def cases() -> list[tuple[str, Case]]:
    return [(f"{kind} {seed}", case(kind, seed)) for kind in KINDS for seed in range(SEEDS)]


def case(kind: str, seed: int) -> Case:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    count = 3 * GROUP
    lengths_B = torch.randint(1, LONGEST + 1, (count,), generator=draw)
    lengths_B = torch.ones_like(lengths_B) if kind == "one token" else lengths_B
    mask_BT = torch.arange(LONGEST) < lengths_B[:, None]
    size = {"zeros": 0.0, "large": 1e3}.get(kind, 1.0)
    scores_B = torch.full((count,), 1.3, dtype=torch.float64) if kind == "equal" else size * normal(count)
    rewards_BT = size * 0.1 * normal(count, LONGEST) * mask_BT
    if kind == "equal":
        rewards_BT = torch.zeros_like(rewards_BT)
    rewards_BT[torch.arange(count), lengths_B - 1] += scores_B
    old_BT = -normal(count, LONGEST).abs() * mask_BT
    near = [(old_BT + width * normal(count, LONGEST)) * mask_BT for width in (0.3, 0.5, 0.7)]
    return Case(
        mask_BT,
        rewards_BT,
        scores_B,
        size * normal(count, LONGEST) * mask_BT,
        *near[:1],
        old_BT,
        *near[1:],
        size * normal(count),
    )


@dataclass
class Table:
    """The largest difference of each comparison."""

    rows: dict[tuple[str, str], tuple[float, str, float]]

    def compare(
        self, what: str, peer: str, ours: Tensor, theirs: Tensor, where: str, limit: float = EXACT
    ) -> None:
        """Note the difference, relative where the numbers are above 1."""
        assert ours.shape == theirs.shape, (what, peer, ours.shape, theirs.shape)
        apart = float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max().detach())
        known = self.rows.get((what, peer), (-1.0, "", limit))
        if not apart <= known[0]:
            self.rows[what, peer] = (apart, where, limit)

    def __str__(self) -> str:
        lines = [
            f"{what:<52} | {peer:<44} | {apart:8.1e} | {where}"
            for (what, peer), (apart, where, _) in self.rows.items()
        ]
        return "\n".join(lines)
