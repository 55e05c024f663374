"""Each labeler beside the others: leave-one-out agreement over the newest shared tasks, and who is flagged.

A flag asks a person to look. Nothing is rejected by it: the others may be wrong together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.judgments.judgment import Judgment
from fairlead.judgments.verdicts import Verdicts, verdicts

LAST_TASKS = 30
"""Shared tasks that count, the newest of each labeler."""
LOWEST_AGREEMENT = 0.60
"""A labeler below it is flagged. With four answers to a task and honest agreement of 0.72, 30 shared tasks
find every labeler that ranks at random or backwards (tests/unit/fairlead/judgments/test_labelers.py)."""


@dataclass(frozen=True, slots=True)
class LabelerFigures:
    """One labeler's agreement with the others."""

    labeler: str
    """Id of the labeler."""
    judgments: int
    """Judgments of the labeler."""
    tied: float
    """Share of all pairs of answers that the labeler tied."""
    tasks: int
    """Shared tasks that count: the newest in which another labeler ordered a pair that this one ordered,
    too."""
    agreed: int
    """Comparisons in which both prefer the same answer."""
    compared: int
    """Comparisons on these tasks with labelers that were not flagged before this one."""
    flagged: bool
    """Whether the agreement over enough tasks is too low."""

    @property
    def agreement(self) -> float | None:
        """Share of comparisons in which both prefer the same answer; None without comparisons."""
        return self.agreed / self.compared if self.compared else None

    def as_json(self) -> dict[str, object]:
        """Return the fields for a report."""
        return {**asdict(self), "agreement": self.agreement}


def leave_one_out(
    judgments: Iterable[Judgment],
    *,
    last: int = LAST_TASKS,
    after: int = LAST_TASKS,
    lowest: float = LOWEST_AGREEMENT,
) -> tuple[LabelerFigures, ...]:
    """Return each labeler's agreement with the others, and flag those below a limit.

    The labeler with the lowest agreement is flagged first and no longer counts among the others, whose
    figures are then computed again, until no further one is flagged: a bad labeler does not lower good ones.
    If several have the lowest agreement, all are flagged; between two labelers nothing says which one is
    wrong. Of the tasks that count, half must be shared with others who are not flagged.

    Args:
        judgments: oldest first; at most one of each labeler on each task.
        last: how many shared tasks count, the newest of each labeler.
        after: with fewer shared tasks no labeler is flagged.
        lowest: agreement below which a labeler is flagged.

    Returns:
        Figures in the order of the labelers' first judgments.

    Raises:
        InvalidInput: if a labeler judged a task twice.
    """
    found = verdicts(judgments)
    sums = _Sums(found, last)
    flagged_L = np.zeros(len(found.labelers), np.bool_)
    agreed_L = compared_L = np.zeros(len(found.labelers), np.int64)
    while True:
        left_L, new_agreed_L, new_compared_L = sums.without(flagged_L)
        # A flagged labeler keeps the figures that it was flagged for.
        agreed_L = np.where(flagged_L, agreed_L, new_agreed_L)
        compared_L = np.where(flagged_L, compared_L, new_compared_L)
        rate_L = agreed_L / np.maximum(compared_L, 1)
        enough_L = (sums.tasks_L >= after) & (left_L >= max(after / 2, 1))
        bad_L = ~flagged_L & enough_L & (rate_L < lowest)
        if not bad_L.any():
            break
        flagged_L |= bad_L & (rate_L == rate_L[bad_L].min())
    labelers = len(found.labelers)
    verdicts_L = np.bincount(found.labeler_V, minlength=labelers)
    tied_L = np.bincount(found.labeler_V, found.value_V == 0, minlength=labelers) / verdicts_L
    judgments_L = np.bincount(sums.labeler_J, minlength=labelers)
    return tuple(
        LabelerFigures(
            labeler=name,
            judgments=int(judgments_L[place]),
            tied=float(tied_L[place]),
            tasks=int(sums.tasks_L[place]),
            agreed=int(agreed_L[place]),
            compared=int(compared_L[place]),
            flagged=bool(flagged_L[place]),
        )
        for place, name in enumerate(found.labelers)
    )


class _Sums:
    """Comparisons of the newest shared judgments of every labeler with those of others."""

    def __init__(self, found: Verdicts, last: int) -> None:
        i_C, j_C = found.couples()
        # Each couple twice, since it counts for both labelers.
        own_C, other_C = np.concatenate([i_C, j_C]), np.concatenate([j_C, i_C])
        product_C = found.value_V[own_C] * found.value_V[other_C]
        compared_C = product_C != 0
        self._agreed_C = product_C[compared_C] > 0
        self._judgment_C = found.judgment_V[own_C][compared_C]
        self._other_C = found.labeler_V[other_C][compared_C]
        self._labelers = len(found.labelers)
        self.labeler_J = np.zeros(int(found.judgment_V.max(initial=-1)) + 1, np.int64)
        """Labeler of each judgment."""
        self.labeler_J[found.judgment_V] = found.labeler_V
        # Newest first within each labeler; the place in that order says what is among the last.
        shared = np.flatnonzero(np.bincount(self._judgment_C, minlength=len(self.labeler_J)))[::-1]
        shared = shared[np.argsort(self.labeler_J[shared], kind="stable")]
        own = self.labeler_J[shared]
        self._window = shared[np.arange(len(own)) - np.searchsorted(own, own, side="left") < last]
        self.tasks_L = self._by_labeler(np.ones_like(self.labeler_J))
        """Tasks that count for each labeler."""

    def without(
        self, flagged_L: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return tasks with comparisons, comparisons that agree, and comparisons, of each labeler.

        Labelers who are flagged do not count as others.
        """
        judgments = len(self.labeler_J)
        counts_C = ~flagged_L[self._other_C]
        compared_J = np.bincount(self._judgment_C[counts_C], minlength=judgments)
        agreed_J = np.bincount(self._judgment_C[counts_C & self._agreed_C], minlength=judgments)
        return self._by_labeler(compared_J > 0), self._by_labeler(agreed_J), self._by_labeler(compared_J)

    def _by_labeler(self, values_J: NDArray[Any]) -> NDArray[np.int64]:
        own = self.labeler_J[self._window]
        return np.bincount(own, values_J[self._window], minlength=self._labelers).astype(np.int64)
