"""The one table that docs, report, status and dashboards use, and how an entry is found by its name."""

from __future__ import annotations

from dataclasses import replace

from fairlead.metrics.statistics.entry import Statistic
from fairlead.metrics.statistics.evaluation import EVALUATION
from fairlead.metrics.statistics.guard import GUARD
from fairlead.metrics.statistics.learning import LEARNING
from fairlead.metrics.statistics.pace import PACE
from fairlead.metrics.statistics.pairs import PAIRS
from fairlead.metrics.statistics.rollouts import ROLLOUTS
from fairlead.metrics.statistics.supervised import SUPERVISED

STATISTICS: tuple[Statistic, ...] = (
    *ROLLOUTS,
    *LEARNING,
    *PAIRS,
    *PACE,
    *EVALUATION,
    *GUARD,
    *SUPERVISED,
)
"""Every statistic, in the order in which a reader needs them."""

SIGNALS = tuple(statistic.signal for statistic in STATISTICS if statistic.name == f"guard_{statistic.signal}")
"""The signals of the guard against reward hacking."""

_BY_NAME = {statistic.name: statistic for statistic in STATISTICS}
_HELDOUT = "heldout_"


def find(name: str) -> Statistic | None:
    """Return the entry of a statistic, with `name` and title of this member of a family; None if unknown.

    Args:
        name: a key of metrics_<stage>.jsonl.
    """
    known = _BY_NAME.get(name)
    if known is not None:
        return known
    for family in STATISTICS:
        if family.prefix and name.startswith(family.prefix):
            member = name.removeprefix(family.prefix).replace("_", " ")
            return replace(family, name=name, title=f"{family.title}: {member}")
    if name.startswith(_HELDOUT) and (trained := _BY_NAME.get(name.removeprefix(_HELDOUT))) is not None:
        return replace(
            trained,
            name=name,
            title=f"Held-out: {trained.title[0].lower()}{trained.title[1:]}",
            meaning=f"{trained.meaning} On held-out examples, after an epoch.",
        )
    return None
