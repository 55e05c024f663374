"""The pairs of all judgments as arrays: which of two answers each labeler preferred.

Letters: V verdicts, P pairs of answers, each of one task, C couples of verdicts on one pair.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fairlead.judgments.judgment import Judgment, once_each

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """One row for every judgment and every two answers that it ranks."""

    tasks: tuple[str, ...]
    """Ids of tasks, in the order of their first judgment."""
    labelers: tuple[str, ...]
    """Ids of labelers, in the order of their first judgment."""
    task_P: Ints
    """Task of each pair."""
    pair_V: Ints
    """Pair of each verdict."""
    labeler_V: Ints
    """Labeler of each verdict."""
    judgment_V: Ints
    """Index of the judgment of each verdict."""
    value_V: Ints
    """1 if the first answer of the pair is better, 0 if they are tied, −1 if the second is better. Which of
    two answers is the first is the same in all verdicts on the pair, and has no meaning."""

    def couples(self) -> tuple[Ints, Ints]:
        """Return the indices of every two verdicts on one pair, which are of two labelers, each two once."""
        order_V = np.argsort(self.pair_V, kind="stable")
        sorted_V = self.pair_V[order_V]
        end_V = np.searchsorted(sorted_V, sorted_V, side="right")
        place_V = np.arange(len(sorted_V))
        firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        lag = 1
        while len(found := place_V[place_V + lag < end_V]):
            firsts.append(order_V[found])
            seconds.append(order_V[found + lag])
            lag += 1
        return np.concatenate(firsts), np.concatenate(seconds)


def verdicts(judgments: Iterable[Judgment]) -> Verdicts:
    """Return the verdicts of judgments on every two answers that each of them ranks.

    Raises:
        InvalidInput: if a labeler judged a task twice.
    """
    tasks: dict[str, int] = {}
    labelers: dict[str, int] = {}
    pairs: dict[tuple[int, str, str], int] = {}
    rows: list[tuple[int, int, int, int]] = []
    for index, one in enumerate(once_each(judgments)):
        task = tasks.setdefault(one.task, len(tasks))
        labeler = labelers.setdefault(one.labeler, len(labelers))
        for first, second in combinations(sorted(one.ranks), 2):
            pair = pairs.setdefault((task, first, second), len(pairs))
            gap = one.ranks[second] - one.ranks[first]
            rows.append((pair, labeler, index, int(gap > 0) - int(gap < 0)))
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    task_P = np.array([task for task, _, _ in pairs], np.int64)
    return Verdicts(tuple(tasks), tuple(labelers), task_P, *columns)
