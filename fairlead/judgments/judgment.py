"""A judgment: how one labeler ranked the answers to one task. Does not know prompts, texts or files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fairlead.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Judgment:
    """The ranking that one labeler gave the answers to one task.

    Answers are named by ids, so that judgments of a task are of the same answers, although each labeler saw
    them in an order of its own.

    Raises:
        InvalidInput: for fewer than two answers, a rank that is not a finite number, or fields that name
            other answers than the ranks do.
    """

    task: str
    """Id of the task. Judgments are compared with judgments of the same task."""
    labeler: str
    """Id of the labeler; it may be a pseudonym."""
    ranks: Mapping[str, float]
    """Rank of each answer; the lowest is the best, and equal ranks are a tie."""
    shown: tuple[str, ...] = ()
    """All answers in the order in which the labeler saw them; empty if it is not known."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Length of each answer, in a unit that is the same for all; empty if it is not known."""

    def __post_init__(self) -> None:
        for name in ("task", "labeler"):
            if not getattr(self, name):
                raise InvalidInput(name, got="no text", allowed="an id")
        if len(self.ranks) < 2:
            raise InvalidInput("ranks", got=f"{len(self.ranks)} answers", allowed="at least 2 to compare")
        for answer, rank in self.ranks.items():
            if not math.isfinite(rank):
                raise InvalidInput(f"ranks.{answer}", got=rank, allowed="a finite number")
        if self.shown and Counter(self.shown) != Counter(self.ranks.keys()):
            allowed = "every ranked answer once, or no order"
            raise InvalidInput("shown", got=", ".join(self.shown), allowed=allowed)
        if self.lengths and self.lengths.keys() != self.ranks.keys():
            allowed = "a length of every ranked answer, or none"
            raise InvalidInput("lengths", got=", ".join(self.lengths), allowed=allowed)
        for answer, length in self.lengths.items():
            if length < 0:
                raise InvalidInput(f"lengths.{answer}", got=length, allowed="0 or more")

    @property
    def best(self) -> tuple[str, ...]:
        """The answers in the first place; several if it is tied."""
        first = min(self.ranks.values())
        return tuple(answer for answer, rank in self.ranks.items() if rank == first)


def once_each(judgments: Iterable[Judgment]) -> Sequence[Judgment]:
    """Return the judgments as they are.

    Raises:
        InvalidInput: if a labeler judged a task twice. Only the caller knows which of the two counts.
    """
    found = tuple(judgments)
    seen: dict[tuple[str, str], int] = {}
    for index, one in enumerate(found):
        earlier = seen.setdefault((one.task, one.labeler), index)
        if earlier != index:
            raise InvalidInput(
                "judgments",
                index=index,
                got=f"a second judgment of {one.labeler!r} on task {one.task!r}, after judgments[{earlier}]",
                allowed="one for each labeler and task: drop those that a later one replaces",
            )
    return found
