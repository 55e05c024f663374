"""Questions with known answers: the `gold` of a task, and whether a ranking agrees with it.

`{"ranks": [1, 2, 2], "explanation": "…"}` has a rank for each answer in the order of import, and why. Equal
ranks leave the order of two answers open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from services.feedback.store.records import RANKED_KINDS, Task


@dataclass(frozen=True, slots=True)
class Gold:
    """What is accepted."""

    ranks: Mapping[str, int]
    """Rank of each answer by its id; equal ranks accept every order of the two."""
    explanation: str
    """Why."""

    def accepts(self, ranks: Mapping[str, float]) -> bool:
        """Return whether a ranking prefers the better of every two answers that differ in gold."""
        return all(
            (self.ranks[first] - self.ranks[second]) * (ranks[first] - ranks[second]) > 0
            for first, second in combinations(self.ranks, 2)
            if self.ranks[first] != self.ranks[second]
        )


def gold_of(task: Task) -> Gold | None:
    """Return the gold of a task; None if it has none that a ranking can be compared with."""
    ranks = (task.gold or {}).get("ranks")
    if task.kind not in RANKED_KINDS or not isinstance(ranks, list) or len(ranks) != len(task.answers):
        return None
    if not all(isinstance(rank, int) for rank in ranks):
        return None
    explanation = (task.gold or {}).get("explanation")
    found = dict(zip(task.answers, ranks, strict=True))
    return Gold(found, explanation if isinstance(explanation, str) else "")
