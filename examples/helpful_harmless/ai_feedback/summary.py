"""Accuracy and calibration of every arm over all repetitions, with 95% intervals by resampling questions.

A pair is held out in many repetitions, so the outcomes of a question are summed first: the intervals are
those of a sample of questions, and more repetitions do not make them narrower without end.

Shapes: Q questions, A arms, J judges, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from examples.helpful_harmless.ai_feedback import judges
from examples.helpful_harmless.ai_feedback.arms import Arm
from examples.helpful_harmless.ai_feedback.questions import Indices
from examples.helpful_harmless.ai_feedback.trial import Trial
from examples.helpful_harmless.judge import Array
from fairlead.judgments.calibration import accuracy, expected_calibration_error
from fairlead.judgments.resampling import quantiles, resampled_sums


@dataclass(slots=True)
class Tally:
    """Outcomes of repetitions."""

    question_P: Indices
    """Question of each pair."""
    arms: Sequence[Arm]
    """The arms."""
    trials: list[Trial] = field(default_factory=list)
    """Repetitions."""

    def sums(self) -> tuple[Array, Array, list[str]]:
        """Return for each question how many held-out pairs each arm orders as people did, [Q, A + 1], and how
        many labels of each judge are those of people, [Q, J + 1], both with the number of pairs as the last
        column; and the names of the judges.
        """
        names = list(self.trials[0].labels)
        count = int(self.question_P.max()) + 1
        heldout_QA = np.zeros((count, len(self.arms) + 1))
        labels_QJ = np.zeros((count, len(names) + 1))
        for trial in self.trials:
            right = [(np.sign(trial.margins[arm]) + 1) / 2 for arm in self.arms]
            _add(heldout_QA, self.question_P[trial.split.heldout_H], right)
            _add(labels_QJ, self.question_P[trial.split.learnt_L], [trial.labels[name] for name in names])
        return heldout_QA, labels_QJ, names

    def margins(self, arm: Arm) -> Array:
        """Return the margins of an arm in all repetitions."""
        return np.concatenate([trial.margins[arm] for trial in self.trials])

    def deviation(self, arm: Arm) -> float:
        """Return the standard deviation of the accuracy over repetitions."""
        return float(np.std([accuracy(trial.margins[arm].tolist()) for trial in self.trials], ddof=1))


def _add(sums_QC: Array, questions: Indices, columns: Sequence[Any]) -> None:
    """Add columns by question, and the number of pairs as the last one."""
    for place, values in enumerate([*columns, np.ones(len(questions))]):
        sums_QC[:, place] += np.bincount(questions, values, minlength=len(sums_QC))


def figures(tally: Tally, *, seed: int) -> dict[str, Any]:
    """Return the figures of judges and of arms; differences are those of the same pairs and resamples."""
    heldout_QA, labels_QJ, names = tally.sums()
    both = np.concatenate([heldout_QA, labels_QJ], axis=1)
    drawn = np.concatenate([both.sum(axis=0)[None], resampled_sums(both, seed=seed)])
    arms = heldout_QA.shape[1]
    # Row 0 is that of all questions, the others are resamples.
    accuracies = dict(zip(tally.arms, (drawn[:, : arms - 1] / drawn[:, arms - 1 : arms]).T, strict=True))
    of_judges = dict(zip(names, (drawn[:, arms:-1] / drawn[:, -1:]).T, strict=True))
    return {
        "repetitions": len(tally.trials),
        "questions": len(both),
        "pairs": len(tally.question_P),
        "heldout": float(np.mean([len(trial.split.heldout_H) for trial in tally.trials])),
        "judges": [{"judge": name, **_shown(values)} for name, values in of_judges.items()],
        "arms": [_of_arm(tally, arm, accuracies) for arm in tally.arms],
    }


def _of_arm(tally: Tally, arm: Arm, accuracies: dict[Arm, Array]) -> dict[str, Any]:
    own, margins = accuracies[arm], tally.margins(arm)
    others = {
        "people": Arm(arm.total),
        "control": Arm(arm.people, arm.judged, judges.control(arm.judge)),
        "nothing_added": Arm(arm.people),
        "random": Arm(arm.people, arm.judged, judges.RANDOM),
        "unweighted": Arm(arm.people, arm.judged, arm.judge),
    }
    people = [other for other in accuracies if not other.judged]
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    return {
        **asdict(arm),
        **_shown(own),
        "deviation": tally.deviation(arm),
        "loss": float(np.logaddexp(0, -margins).mean()),
        "confidence": float(confidence.mean()),
        "calibration_error": expected_calibration_error(margins.tolist()),
        "worth": _shown(_worth(own, [(other.people, accuracies[other]) for other in people])),
        "above": {
            name: _shown(own - accuracies[other])
            for name, other in others.items()
            if other in accuracies and other != arm
        },
    }


def _worth(own_R: Array, people: Sequence[tuple[int, Array]]) -> Array:
    """Return [R]: how many labels by people only are as good, linear between those measured."""
    sizes = [0, *(size for size, _ in people)]
    curves = np.maximum.accumulate([np.full_like(own_R, 0.5), *(values for _, values in people)], axis=0)
    return np.array([np.interp(one, curve, sizes) for one, curve in zip(own_R, curves.T, strict=True)])


def _shown(values_R: Array) -> dict[str, Any]:
    """Return the value of all questions, and its interval by those of resamples."""
    return {"value": float(values_R[0]), "interval": quantiles(values_R[1:])}
