"""What reward models learn from: how many labels are whose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from examples.helpful_harmless.ai_feedback import judges

SIZES = (32, 16, 8, 4, 2, 1)
"""Labels of one source are all there are, divided by these."""
SHARES = (8, 4, 2)
"""Labels by people in a mixture are all there are, divided by these; a judge adds the rest."""
_CONTROLLED = 4
"""The one of them at which judges have controls."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Numbers of labels by people and by a judge."""

    people: int
    """Labels by people."""
    judged: int = 0
    """Labels by the judge."""
    judge: str = ""
    """Name of the judge, if there is one."""
    weighted: bool = False
    """Whether a judge of accuracy a has labels of weight 2a − 1."""

    @property
    def total(self) -> int:
        """All labels."""
        return self.people + self.judged


def arms(learnt: int, real: Sequence[str]) -> list[Arm]:
    """Return all arms with at most `learnt` labels, by people, judges of known accuracy and the `real` ones.

    Labels by people only come first, fewest labels first.
    """
    sizes = [learnt // divisor for divisor in SIZES]
    return [*(Arm(size) for size in sizes), *_judged(sizes, real), *_mixtures(learnt, real)]


def _judged(sizes: Sequence[int], real: Sequence[str]) -> Iterator[Arm]:
    """Yield arms with the labels of one judge, without people's."""
    for name in (*judges.KNOWN, *real):
        yield from (Arm(0, size, name) for size in sizes)
    yield from (Arm(0, sizes[-1], judges.control(name)) for name in real)


def _mixtures(learnt: int, real: Sequence[str]) -> Iterator[Arm]:
    for share in SHARES:
        people = learnt // share
        controls = map(judges.control, real if share == _CONTROLLED else ())
        for name in (*judges.KNOWN, *real, *controls):
            yield Arm(people, learnt - people, name)
        for name in judges.KNOWN:
            if name != judges.RANDOM:
                yield Arm(people, learnt - people, name, weighted=True)
