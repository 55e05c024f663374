"""The gate after a reward model: is it no worse than the one before, on pairs that neither has learnt from?

Pure functions of rankings and scores. Does not know where they come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fairlead.judgments.calibration import expected_calibration_error
from fairlead.judgments.resampling import Interval, ratio_interval
from fairlead.rounds.labelers import Ranking, pairs

MIN_RANKINGS = 10
"""With fewer rankings an interval by resampling them says little, and the gate does not decide."""
CHANCE = 0.5
"""What the first reward model is compared with."""

Pair = tuple[str, str, str]
"""Prompt as JSON, better and worse text."""
Score = Callable[[str, str], float]
"""Returns the score of a text to a prompt, which is given as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """Accuracy of a reward model on pairs that it has not learnt from, beside that of the one before."""

    measured_on: str
    """Whose pairs: `held-out people`, or `held-out prompts` if these people have none."""
    rankings: int
    """Rankings with at least one pair."""
    pairs: int
    """Pairs that are no ties and that no ranking in the training data has."""
    accuracy: float | None
    """Share of the pairs whose better answer has the higher score; equal scores count half. None without
    pairs."""
    accuracy_before: float | None
    """The same of the reward model before; 0.5 in the first round."""
    difference: float | None
    """Accuracy minus accuracy before."""
    ece: float | None
    """Expected calibration error of the new model: how far its confidence is from its accuracy."""
    longer_wins: float | None
    """Accuracy of a baseline that prefers the longer answer, in words."""
    interval: Interval | None
    """95% interval of the difference, by resampling rankings; None with fewer than `MIN_RANKINGS`."""

    @property
    def passes(self) -> bool:
        """Whether the new model is not measurably worse: its interval is not wholly below 0."""
        return self.interval is None or self.interval[1] >= 0

    def as_json(self) -> dict[str, object]:
        """Return the fields and the decision, for a file."""
        return {**asdict(self), "passes": self.passes}

    def __str__(self) -> str:
        if self.accuracy is None or self.accuracy_before is None or self.difference is None:
            return "no pairs of held-out people or prompts: the reward model was not compared"
        text = (
            f"accuracy on {self.pairs} pairs of {self.measured_on} {self.accuracy:.1%}, "
            f"before {self.accuracy_before:.1%}, difference {self.difference:+.1%}"
        )
        if self.interval is None:
            text += f"; no decision with fewer than {MIN_RANKINGS} rankings"
        else:
            text += f" (95% interval {self.interval[0]:+.1%} to {self.interval[1]:+.1%})"
        return f"{text}; calibration error {self.ece:.3f}, longer answers win {self.longer_wins:.1%}"


def pairs_of(ranking: Ranking) -> list[Pair]:
    """Return the ordered pairs of a ranking with their prompt."""
    prompt = json.dumps(ranking["prompt"])
    return [(prompt, better, worse) for better, worse in pairs(ranking)]


def measuring_pairs(heldout: Iterable[Ranking], trained: Iterable[Ranking]) -> list[list[Pair]]:
    """Return the pairs of each held-out ranking, without those that the new model learnt from.

    A pair that somebody in the training data ranked would favour the new model, which has seen it.
    """
    known = {(prompt, frozenset(texts)) for one in trained for prompt, *texts in pairs_of(one)}
    groups = ([pair for pair in pairs_of(one) if _unordered(pair) not in known] for one in heldout)
    return [group for group in groups if group]


def compare(
    groups: Sequence[Sequence[Pair]],
    score: Score,
    before: Score | None,
    *,
    seed: int,
    measured_on: str = "held-out people",
) -> GateReport:
    """Compare two reward models.

    Args:
        groups: pairs of each ranking.
        score: of the new model.
        before: of the model before; None in the first round, which is compared with chance.
        seed: of the resampling.
        measured_on: whose pairs they are, for the report.
    """
    if not groups:
        names = ("accuracy", "accuracy_before", "difference", "ece", "longer_wins", "interval")
        return GateReport(measured_on=measured_on, rankings=0, pairs=0, **dict.fromkeys(names))
    sizes_G = np.array([len(group) for group in groups], np.float64)
    new_G = _right(groups, score)
    old_G = CHANCE * sizes_G if before is None else _right(groups, before)
    enough = len(groups) >= MIN_RANKINGS
    return GateReport(
        measured_on=measured_on,
        rankings=len(groups),
        pairs=int(sizes_G.sum()),
        accuracy=float(new_G.sum() / sizes_G.sum()),
        accuracy_before=float(old_G.sum() / sizes_G.sum()),
        difference=float((new_G - old_G).sum() / sizes_G.sum()),
        ece=expected_calibration_error(
            [score(p, high) - score(p, low) for g in groups for p, high, low in g]
        ),
        longer_wins=float(_right(groups, _length).sum() / sizes_G.sum()),
        interval=ratio_interval(new_G - old_G, sizes_G, seed=seed) if enough else None,
    )


def scorer(scores: Mapping[tuple[str, str], float]) -> Score:
    """Return a `Score` that looks up (prompt, text)."""
    return lambda prompt, text: scores[prompt, text]


def _length(_: str, text: str) -> float:
    return float(len(text.split()))


def _right(groups: Sequence[Sequence[Pair]], score: Score) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    def one(prompt: str, better: str, worse: str) -> float:
        high, low = score(prompt, better), score(prompt, worse)
        return 0.5 if high == low else float(high > low)

    return np.array([sum(one(*pair) for pair in group) for group in groups], np.float64)


def _unordered(pair: Pair) -> tuple[str, frozenset[str]]:
    prompt, *texts = pair
    return prompt, frozenset(texts)
