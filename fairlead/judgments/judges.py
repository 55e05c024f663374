"""A model judge beside people: how often it says what they say, on tasks that people judged too.

A rate over ordered pairs by itself would not see a judge that ties everything, so a tie of one side counts
half.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.judgments.judgment import Judgment
from fairlead.judgments.resampling import Interval, quantiles, resampled_sums
from fairlead.judgments.verdicts import verdicts

ENOUGH_TASKS = 30
"""Audited tasks from which on a judge may be found below people."""
MARGIN = 0.05
"""How far below people's agreement with one another a judge's agreement with them may be."""


@dataclass(frozen=True, slots=True)
class Alike:
    """Comparisons of two labelers and a pair of answers that both judged."""

    pairs: int
    """How many there are."""
    alike: float | None
    """Mean of 1 where both say the same, ½ where one of them ties, and 0 where they are opposed; None without
    pairs."""
    compared: int
    """Those in which neither ties."""
    rate: float | None
    """Share of these in which both prefer the same answer; None if there are none."""


@dataclass(frozen=True, slots=True)
class BesidePeople:
    """A judge's agreement with people, beside people's with one another, on the same tasks."""

    tasks: int
    """Tasks that the judge and at least two people judged."""
    with_people: Alike
    """The judge with each person."""
    people: Alike
    """Every two people."""
    difference: float | None
    """`alike` of the judge minus that of people; None without tasks."""
    interval: Interval | None
    """95% interval of the difference, by resampling tasks; None with fewer than two."""
    below: bool
    """Whether there are enough tasks, the difference is below the margin, and its interval is below 0."""

    def as_json(self) -> dict[str, object]:
        """Return the fields for a report."""
        return asdict(self)


def beside_people(
    judgments: Iterable[Judgment],
    judge: str,
    *,
    seed: int,
    enough: int = ENOUGH_TASKS,
    margin: float = MARGIN,
) -> BesidePeople:
    """Compare a judge with people on the tasks that it and at least two of them judged.

    Args:
        judgments: of the judge and of people, at most one of each on each task; all others count as people.
        judge: labeler of the judge's judgments.
        seed: of the resampling.
        enough: tasks below which the judge is not found below people.
        margin: how far below people the judge may be.

    Raises:
        InvalidInput: if a labeler judged a task twice.
    """
    found = verdicts(judgments)
    i_C, j_C = found.couples()
    is_judge_V = np.array([name == judge for name in found.labelers], np.bool_)[found.labeler_V]
    own_C = is_judge_V[i_C] | is_judge_V[j_C]
    task_C = found.task_P[found.pair_V[i_C]]
    alike_C = 1 - np.abs(found.value_V[i_C] - found.value_V[j_C]) / 2
    product_C = found.value_V[i_C] * found.value_V[j_C]

    def by_task(values_C: NDArray[np.generic]) -> NDArray[np.float64]:
        sums_T = np.bincount(task_C, values_C.astype(np.float64), minlength=len(found.tasks))
        return sums_T.astype(np.float64)

    # Columns: alike and pairs of the judge with people, then of people.
    sums_T4 = np.stack(
        [by_task(alike_C * own_C), by_task(own_C), by_task(alike_C * ~own_C), by_task(~own_C)], axis=1
    )
    both_T = (sums_T4[:, 1] > 0) & (sums_T4[:, 3] > 0)
    sums_T4 = sums_T4[both_T]
    tasks = len(sums_T4)
    counts_C = both_T[task_C]
    with_people = _alike(alike_C[counts_C & own_C], product_C[counts_C & own_C])
    people = _alike(alike_C[counts_C & ~own_C], product_C[counts_C & ~own_C])
    difference = float(_differences(sums_T4.sum(axis=0)[None])[0]) if tasks else None
    interval = quantiles(_differences(resampled_sums(sums_T4, seed=seed))) if tasks > 1 else None
    below = (
        tasks >= enough
        and difference is not None
        and difference < -margin
        and interval is not None
        and interval[1] < 0
    )
    return BesidePeople(tasks, with_people, people, difference, interval, below)


def _alike(alike_C: NDArray[np.float64], product_C: NDArray[np.int64]) -> Alike:
    compared = int((product_C != 0).sum())
    return Alike(
        pairs=len(alike_C),
        alike=float(alike_C.mean()) if len(alike_C) else None,
        compared=compared,
        rate=float((product_C > 0).sum() / compared) if compared else None,
    )


def _differences(sums_R4: NDArray[np.float64]) -> NDArray[np.float64]:
    return sums_R4[:, 0] / sums_R4[:, 1] - sums_R4[:, 2] / sums_R4[:, 3]
