"""One repetition: a split, the judges' labels, and a reward model of every arm, measured on held-out pairs.

A reward model is a linear head on frozen features of the untuned model.

Shapes: L learnt, H held out, F features, A arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from examples.helpful_harmless import judge
from examples.helpful_harmless.ai_feedback import heads, judges, questions
from examples.helpful_harmless.ai_feedback.arms import Arm
from examples.helpful_harmless.ai_feedback.judges import Evidence, Labels
from examples.helpful_harmless.ai_feedback.questions import Asked, Split
from examples.helpful_harmless.judge import Array


@dataclass(frozen=True, slots=True)
class Plan:
    """What repetitions have in common."""

    learnt: int
    """Pairs to learn from."""
    judges: int
    """Pairs that trained judges learn from."""
    seed: int = 0
    """Of splits and labels."""
    penalty: float = judge.PENALTY
    """Of the reward models."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came out of a repetition."""

    split: Split
    """Which pairs were learnt and held out."""
    labels: Mapping[str, Labels]
    """Of each judge, whether its labels [L] are those of people."""
    margins: Mapping[Arm, Array]
    """Of each arm, the score of the answer that people preferred minus that of the other one, [H]."""


def divided(asked: Asked, plan: Plan, rng: np.random.Generator) -> Split:
    """Return a split of the sizes of a plan.

    Raises:
        ConfigError: if no pair is left to be held out.
    """
    return questions.split(asked.question_P, learnt=plan.learnt, judges=plan.judges, rng=rng)


def run(evidence: Evidence, arms: Sequence[Arm], plan: Plan, *, repetition: int) -> Trial:
    """Return the outcome of a repetition; the same number draws the same split and labels.

    Raises:
        ConfigError: if no pair is left to be held out.
    """
    rng = np.random.default_rng([plan.seed, repetition])
    split = divided(evidence.asked, plan, rng)
    labels = judges.labels(evidence, split, rng=rng)
    heldout_HF = evidence.better_PF[split.heldout_H] - evidence.worse_PF[split.heldout_H]
    margins: dict[Arm, Array] = {}
    for total in sorted({arm.total for arm in arms}):
        alike = [arm for arm in arms if arm.total == total]
        margins_HA = heldout_HF @ fitted(evidence, split, labels, alike, penalty=plan.penalty)
        margins.update(zip(alike, margins_HA.T, strict=True))
    return Trial(split, labels, margins)


def fitted(
    evidence: Evidence, split: Split, labels: Mapping[str, Labels], arms: Sequence[Arm], *, penalty: float
) -> Array:
    """Return the weights [F, A] of the reward model of each arm; all arms have as many labels in total.

    People label the first pairs, and the judge the following ones.
    """
    total = arms[0].total
    right_LA, weights_LA = np.ones((total, len(arms)), np.bool_), np.ones((total, len(arms)))
    for column, arm in enumerate(arms):
        if arm.judged:
            right_LA[arm.people :, column] = labels[arm.judge][arm.people : total]
        if arm.weighted:
            weights_LA[arm.people :, column] = 2 * judges.KNOWN[arm.judge] - 1
    places = split.learnt_L[:total]
    better_LF, worse_LF = evidence.better_PF[places], evidence.worse_PF[places]
    return heads.fit(better_LF, worse_LF, right_LA, weights_LA, penalty=penalty)
