"""Figures of a project's rankings, for the API and the pages.

Everything is computed from the entries that count; `fairlead.judgments` says how.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from fairlead import judgments
from fairlead.judgments import Judgment, LabelerFigures
from services.feedback.service import Service
from services.feedback.store.judged import Filter, Judged
from services.feedback.store.records import BESIDES_JUDGES, COHORTS, RANKED_KINDS

SEED = 0
"""Of the resampling, so that the same judgments have the same intervals."""
MEASURED = ("random",)
"""Why tasks were chosen that may measure anything."""
SHARED = ("random", "audit", "uncertain", "fresh")
"""Why tasks were chosen on which labelers are compared with one another."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A task that labelers ranked differently."""

    task: str
    """Id of the task."""
    judgments: int
    """How many there are."""
    opposed: int
    """Comparisons of two labelers and a pair of answers in which they prefer different ones."""
    compared: int
    """Comparisons in which both prefer one."""

    @property
    def share(self) -> float:
        """Share of the comparisons that are opposed."""
        return self.opposed / self.compared if self.compared else 0.0


def rankings(service: Service, project: str, whys: Sequence[str]) -> list[Judged]:
    """Return the rankings of a project that count, by everybody but judges, oldest first."""
    wanted = Filter(
        project=project, kinds=RANKED_KINDS, cohorts=COHORTS, people=BESIDES_JUDGES, whys=tuple(whys)
    )
    return service.store.snapshots.judged(wanted)


def of_project(service: Service, project: str, whys: Sequence[str]) -> list[Judgment]:
    """Return the same as figures read them."""
    return [one.judgment for one in rankings(service, project, whys)]


def agreement_by_labeler(service: Service, project: str) -> Mapping[str, LabelerFigures]:
    """Return how each person agrees with the others on the last shared tasks, by the person's id."""
    return {one.labeler: one for one in judgments.leave_one_out(of_project(service, project, SHARED))}


def disagreements(found: Sequence[Judgment]) -> list[Disagreement]:
    """Return the tasks that several labelers ranked, those that they ranked most differently first."""
    by_task: dict[str, list[Judgment]] = defaultdict(list)
    for one in found:
        by_task[one.task].append(one)
    measured = [_disagreement(task, several) for task, several in by_task.items() if len(several) > 1]
    return sorted(measured, key=lambda one: (-one.share, -one.compared, one.task))


def _disagreement(task: str, found: Sequence[Judgment]) -> Disagreement:
    opposed = compared = 0
    for one, other in combinations(found, 2):
        for first, second in combinations(one.ranks, 2):
            product = (one.ranks[first] - one.ranks[second]) * (other.ranks[first] - other.ranks[second])
            compared += product != 0
            opposed += product < 0
    return Disagreement(task, len(found), opposed, compared)
