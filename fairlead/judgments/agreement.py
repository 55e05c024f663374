"""How far labelers agree: the rate of InstructGPT and Krippendorff's alpha, with intervals, and by two
labelers.

The rate is over pairs of answers that neither of two labelers tied (Ouyang et al. 2022, section 3.4), so it
says nothing about ties and nothing about chance. Alpha counts both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.judgments.alpha import alpha_of_coincidences, coincidences
from fairlead.judgments.judgment import Judgment
from fairlead.judgments.kappa import cohen_kappa
from fairlead.judgments.resampling import Interval, quantiles, ratio_interval, resampled_sums
from fairlead.judgments.verdicts import Verdicts, verdicts

_VALUES = np.array([-1.0, 0.0, 1.0])
"""Categories of a verdict: worse, tied, better."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of all labelers, over every two of them that judged the same task."""

    rate: float | None
    """Share of comparisons in which both prefer the same answer; None without comparisons."""
    interval: Interval | None
    """95% interval of the rate, by resampling tasks; None with fewer than two tasks."""
    compared: int
    """Comparisons: two labelers and a pair of answers that both ordered."""
    tied: float | None
    """Share of the pairs of two labelers that at least one of them tied, which are not comparisons."""
    alpha: float | None
    """Krippendorff's alpha, ordinal on worse, tied and better; None if chance is undefined."""
    alpha_interval: Interval | None
    """95% interval of alpha, by resampling tasks."""
    tasks: int
    """Tasks that at least two labelers judged."""
    judgments: int
    """Judgments of all tasks."""

    def as_json(self) -> dict[str, object]:
        """Return the fields for a report."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TwoLabelers:
    """Agreement of two labelers."""

    first: str
    """One labeler."""
    second: str
    """The other labeler."""
    tasks: int
    """Tasks that both judged."""
    agreed: int
    """Comparisons in which both prefer the same answer."""
    compared: int
    """Pairs of answers that both ordered."""
    pairs: int
    """Pairs of answers that both judged, ties included."""
    kappa: float | None
    """Cohen's kappa on worse, tied and better; None if chance is undefined."""

    @property
    def rate(self) -> float | None:
        """Share of comparisons in which both prefer the same answer."""
        return self.agreed / self.compared if self.compared else None

    def as_json(self) -> dict[str, object]:
        """Return the fields for a report."""
        return {**asdict(self), "rate": self.rate}


def agreement(judgments: Iterable[Judgment], *, seed: int) -> Agreement:
    """Return the agreement of all labelers. The order of the judgments changes nothing, intervals included.

    Alpha reads every pair in both directions, so that it does not depend on which of two answers is named
    first.

    Args:
        judgments: at most one of each labeler on each task.
        seed: of the resampling.

    Raises:
        InvalidInput: if a labeler judged a task twice.
    """
    found = verdicts(judgments)
    agreed_T, compared_T, pairs_T = _sums_by_task(found)
    shared_T = pairs_T > 0
    compared, pairs = int(compared_T.sum()), int(pairs_T.sum())
    several = int((compared_T > 0).sum()) > 1
    sums_T2 = _sorted_rows(np.stack([agreed_T, compared_T], axis=1)[shared_T])
    alpha, alpha_interval = _alpha(found, shared_T, seed=seed)
    return Agreement(
        rate=float(agreed_T.sum()) / compared if compared else None,
        interval=ratio_interval(*sums_T2.T, seed=seed) if several else None,
        compared=compared,
        tied=1 - compared / pairs if pairs else None,
        alpha=alpha,
        alpha_interval=alpha_interval,
        tasks=int(shared_T.sum()),
        judgments=len(np.unique(found.judgment_V)),
    )


def by_two_labelers(judgments: Iterable[Judgment]) -> tuple[TwoLabelers, ...]:
    """Return the agreement of every two labelers that share a task, in the order of their first judgments.

    Raises:
        InvalidInput: if a labeler judged a task twice.
    """
    found = verdicts(judgments)
    i_C, j_C = found.couples()
    if not len(i_C):
        return ()
    labelers_C2 = np.sort(np.stack([found.labeler_V[i_C], found.labeler_V[j_C]], axis=1), axis=1)
    by_two = np.lexsort((labelers_C2[:, 1], labelers_C2[:, 0]))
    ends = np.flatnonzero(np.diff(labelers_C2[by_two], axis=0).any(axis=1)) + 1
    return tuple(_two(found, labelers_C2[rows[0]], i_C[rows], j_C[rows]) for rows in np.split(by_two, ends))


def _two(
    found: Verdicts, both: NDArray[np.int64], i_C: NDArray[np.int64], j_C: NDArray[np.int64]
) -> TwoLabelers:
    # A couple's own order is that of its rows; the labeler decides which value is whose.
    swapped_C = found.labeler_V[i_C] != both[0]
    first_C = found.value_V[np.where(swapped_C, j_C, i_C)]
    second_C = found.value_V[np.where(swapped_C, i_C, j_C)]
    kappa = cohen_kappa([*first_C, *-first_C], [*second_C, *-second_C])
    product_C = first_C * second_C
    return TwoLabelers(
        first=found.labelers[both[0]],
        second=found.labelers[both[1]],
        tasks=len(np.unique(found.task_P[found.pair_V[i_C]])),
        agreed=int((product_C > 0).sum()),
        compared=int((product_C != 0).sum()),
        pairs=len(product_C),
        kappa=None if np.isnan(kappa) else kappa,
    )


def _counts(found: Verdicts) -> NDArray[np.float64]:
    """Return [P, 3]: how many labelers called the first answer of each pair worse, tied and better."""
    counts_P3 = np.zeros((len(found.task_P), 3))
    np.add.at(counts_P3, (found.pair_V, found.value_V + 1), 1.0)
    return counts_P3


def _sums_by_task(found: Verdicts) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return comparisons that agree, comparisons, and pairs of answers with ties, of every two labelers."""
    worse_P, tied_P, better_P = _counts(found).T
    ordered_P, all_P = worse_P + better_P, worse_P + tied_P + better_P

    def by_task(values_P: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(found.task_P, values_P, minlength=len(found.tasks)).astype(np.float64)

    agreed_P = (worse_P * (worse_P - 1) + better_P * (better_P - 1)) / 2
    return by_task(agreed_P), by_task(ordered_P * (ordered_P - 1) / 2), by_task(all_P * (all_P - 1) / 2)


def _sorted_rows(values_TC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows by their values, so that an interval does not depend on the order of the tasks."""
    # Sums in another order differ in their last digits.
    return values_TC[np.lexsort(values_TC.T.round(9))]


def _alpha(
    found: Verdicts, shared_T: NDArray[np.bool_], *, seed: int
) -> tuple[float | None, Interval | None]:
    """Return ordinal alpha over shared tasks, and its interval."""
    own_P33 = coincidences(_counts(found))
    both_P33 = (own_P33 + own_P33[:, ::-1, ::-1]) / 2
    by_task_T9 = np.zeros((len(found.tasks), 9))
    np.add.at(by_task_T9, found.task_P, both_P33.reshape(-1, 9))
    by_task_T9 = _sorted_rows(by_task_T9[shared_T])

    def of(sums_9: NDArray[np.float64]) -> float:
        return alpha_of_coincidences(sums_9.reshape(3, 3), _VALUES, level="ordinal")

    whole = of(by_task_T9.sum(axis=0))
    if np.isnan(whole):
        return None, None
    if len(by_task_T9) < 2:
        return whole, None
    figures_R = np.array([of(sums_9) for sums_9 in resampled_sums(by_task_T9, seed=seed)])
    return whole, quantiles(figures_R[~np.isnan(figures_R)])
