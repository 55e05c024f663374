"""The rollouts of one update as tensors: flat over response tokens, in the order of task ids.

Built from outcomes that the collector admitted. Knows nothing about the queue or models.

Shapes: B rollouts, T response positions, N response tokens of all rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fairlead.types import FinishReason, Outcome, Rollout, WeightVersion
from trainer.sequences import TokenSequence


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """Rollouts of the policy with their scores and reference log-probs."""

    task_ids: tuple[int, ...]
    """Task of each rollout, in ascending order."""
    sequences: tuple[TokenSequence, ...]
    """Prompt and response of each rollout."""
    groups_B: Tensor
    """The group of each rollout, ascending from 0: rollouts that answer the same task are in one group."""
    behaviour_N: Tensor
    """log π_behaviour of each response token, as recorded when it was sampled."""
    reference_N: Tensor
    """log π_ref of each response token; NaN in rollouts without it, for which the trainer computes it."""
    scores_B: Tensor
    """Score of the reward model."""
    cut_off_B: Tensor
    """True where the answer reached the length limit without an EOS."""
    stale_B: Tensor
    """True where a token was sampled by older weights than those about to be trained."""
    lengths_B: Tensor
    """Response tokens of each rollout."""
    mask_BT: Tensor
    """True at response tokens of the rectangle; indexing with it restores the flat order."""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """Of a combined reward: the scores [B] of each term that all rollouts have, by its name."""

    def token_indices(self, members: Sequence[int]) -> Tensor:
        """Return the positions of these rollouts' tokens in the flat tensors, in the order of `members`."""
        lengths = [sequence.response_length for sequence in self.sequences]
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        parts = [torch.arange(starts[index], starts[index] + lengths[index]) for index in members]
        return torch.cat([torch.arange(0), *parts]).to(self.scores_B.device)

    def per_token(self, rollouts_B: Tensor) -> Tensor:
        """Return [N]: at each response token the value of its rollout in [B]."""
        return rollouts_B.repeat_interleave(self.lengths_B)

    def rectangle(self, flat_N: Tensor) -> Tensor:
        """Return [N] as [B, T], right-padded with 0."""
        rectangle_BT = flat_N.new_zeros(self.mask_BT.shape)
        rectangle_BT[self.mask_BT] = flat_N
        return rectangle_BT


def from_outcomes(
    outcomes: Sequence[Outcome], device: torch.device, *, version: WeightVersion | None = None
) -> RolloutBatch | None:
    """Return the rollouts of the outcomes in the order of task ids and samples; None if every task is dead.

    A dead task makes the batch smaller; no other task takes its place.

    Args:
        outcomes: the outcomes of the tasks of an update.
        device: the device of the tensors.
        version: the weights about to be trained, whose number of updates says which rollouts are stale; None
            if no rollout is.
    """
    groups = sorted((each for each in outcomes if each.rollouts), key=lambda each: each.task.task_id)
    if not groups:
        return None
    rollouts = [rollout for outcome in groups for rollout in outcome.rollouts]
    tasks = [outcome.task for outcome in groups for _ in outcome.rollouts]
    sizes_G = torch.tensor([len(outcome.rollouts) for outcome in groups])
    behaviour = [value for rollout in rollouts for value in rollout.completion.logprobs]
    reference = [
        value
        for rollout in rollouts
        for value in rollout.reference_logprobs or (math.nan,) * len(rollout.completion.token_ids)
    ]
    lengths_B = torch.tensor([len(rollout.completion.token_ids) for rollout in rollouts], device=device)
    cut_off = [rollout.completion.finish_reason == FinishReason.LENGTH for rollout in rollouts]
    stale = [
        version is not None
        and any(span.version.update < version.update for span in rollout.completion.version_spans)
        for rollout in rollouts
    ]
    return RolloutBatch(
        task_ids=tuple(task.task_id for task in tasks),
        sequences=tuple(
            TokenSequence((*task.prompt_token_ids, *rollout.completion.token_ids), len(task.prompt_token_ids))
            for task, rollout in zip(tasks, rollouts, strict=True)
        ),
        groups_B=torch.arange(len(groups)).repeat_interleave(sizes_G).to(device),
        behaviour_N=torch.tensor(behaviour, dtype=torch.float32, device=device),
        reference_N=torch.tensor(reference, dtype=torch.float32, device=device),
        scores_B=torch.tensor([rollout.score for rollout in rollouts], dtype=torch.float32, device=device),
        cut_off_B=torch.tensor(cut_off, dtype=torch.bool, device=device),
        stale_B=torch.tensor(stale, dtype=torch.bool, device=device),
        lengths_B=lengths_B,
        mask_BT=torch.arange(int(lengths_B.max()), device=device) < lengths_B[:, None],
        terms=_terms(rollouts, device),
    )


def _terms(rollouts: Sequence[Rollout], device: torch.device) -> dict[str, Tensor]:
    rows = [dict(rollout.terms) for rollout in rollouts]
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: torch.tensor([row[name] for row in rows], device=device) for name in names}
