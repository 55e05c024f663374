"""One repetition: a split, the judges' labels, and a reward model of every arm, measured on held-out pairs.

A reward model is a linear head on frozen features of the untuned model.

Shapes: L learnt, H held out, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from examples.helpful_harmless import judge
from examples.helpful_harmless.ai_feedback import judges, questions
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


def run(evidence: Evidence, arms: Iterable[Arm], plan: Plan, *, repetition: int) -> Trial:
    """Return the outcome of a repetition; the same number draws the same split and labels.

    Raises:
        ConfigError: if no pair is left to be held out.
    """
    rng = np.random.default_rng([plan.seed, repetition])
    split = divided(evidence.asked, plan, rng)
    labels = judges.labels(evidence, split, rng=rng)
    better_HF, worse_HF = (side[split.heldout_H] for side in (evidence.better_PF, evidence.worse_PF))
    margins = {}
    for arm in arms:
        head = fitted(evidence, split, labels, arm, penalty=plan.penalty)
        margins[arm] = head.scores(better_HF) - head.scores(worse_HF)
    return Trial(split, labels, margins)


def fitted(
    evidence: Evidence, split: Split, labels: Mapping[str, Labels], arm: Arm, *, penalty: float
) -> judge.Judge:
    """Return the reward model of an arm: people label the first pairs, and the judge the following ones."""
    right = np.ones(arm.total, np.bool_)
    weights = np.ones(arm.total)
    if arm.judged:
        right[arm.people :] = labels[arm.judge][arm.people : arm.total]
    if arm.weighted:
        weights[arm.people :] = 2 * judges.KNOWN[arm.judge] - 1
    places = split.learnt_L[: arm.total]
    better, worse = evidence.better_PF[places], evidence.worse_PF[places]
    return judge.fit(
        np.where(right[:, None], better, worse),
        np.where(right[:, None], worse, better),
        penalty=penalty,
        weights_P=weights,
    )
