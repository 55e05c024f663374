"""Which groups have a signal, and how many tasks take the place of those without one (DAPO, Yu et al. 2025).

Estimators of groups compare the answers to one prompt, so they learn nothing from a group whose answers all
have the same reward. With `ppo.dynamic_sampling` such a group is settled as `no_signal`, and a further task
is opened in its place. Used by the trainer and its collector; knows nothing about the queue.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from fairlead.config.training import PpoSection
from fairlead.types import FinishReason, Outcome
from trainer.ppo import objective
from trainer.ppo.advantages import GROUP_EPSILON
from trainer.ppo.score_scale import ScoreScale

EVENT = "no_signal"
"""Event of such a group in the journal and in metrics."""


@dataclass(frozen=True, slots=True)
class DynamicSampling:
    """How the collector treats groups without signal."""

    limit: int
    """Largest number of them that an update sets aside; any further ones are part of its batch."""
    has_signal: Callable[[Outcome], bool]
    """Whether anything can be learnt from an outcome."""
    open_tasks: Callable[[int], None]
    """Opens and sends tasks until this many groups of the update have a task in their place."""

    def aside(self, without_signal: Iterable[int]) -> list[int]:
        """Return the tasks that are set aside: the first ones in the order of tasks, not of arrival."""
        return sorted(without_signal)[: self.limit]


class SignalCheck:
    """Whether the rewards of a group differ."""

    def __init__(self, section: PpoSection, *, max_new_tokens: int) -> None:
        """
        Args:
            section: how scores become rewards; with `missing_eos_penalty` unset, its value is not known yet.
            max_new_tokens: limit of the length of an answer.
        """
        # What normalises scores is known only in the update, and changes no two equal scores.
        unscaled = {"normalise_scores": False, "score_clip": math.inf}
        self._section = section.model_copy(update=unscaled) if section.normalise_scores else section
        self._max_new_tokens = max_new_tokens

    def __call__(self, outcome: Outcome) -> bool:
        """Return whether the rewards of whole answers, without KL, differ; True for a dead task, which no
        other replaces.
        """
        rollouts = outcome.rollouts
        if not rollouts:
            return True
        scores_B = torch.tensor([rollout.score for rollout in rollouts], dtype=torch.float64)
        ends = [rollout.completion.finish_reason for rollout in rollouts]
        cut_off_B = torch.tensor([end == FinishReason.LENGTH for end in ends])
        if self._section.missing_eos_penalty is None and len(set(cut_off_B.tolist())) > 1:
            return True
        rewards_B = objective.shaped_scores(scores_B, cut_off_B, self._section, ScoreScale())
        if self._section.overlong_penalty:
            lengths_B = torch.tensor([len(rollout.completion.token_ids) for rollout in rollouts])
            rewards_B = rewards_B - objective.overlong_penalties(
                lengths_B, self._section, max_new_tokens=self._max_new_tokens
            )
        return bool(rewards_B.max() - rewards_B.min() > GROUP_EPSILON)
