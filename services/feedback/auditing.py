"""Model judges beside people: their figures, and the pause of one that is below people.

A share of what a judge labels goes to people too (`Judgments.hand_in` draws it). Each further judgment of
such a task is a look at its judges.
"""

from __future__ import annotations

import logging
from typing import Any

from fairlead import judgments
from fairlead.judgments.judges import BesidePeople, beside_people
from services.feedback.reckoning import SEED
from services.feedback.service import Service
from services.feedback.store.judged import Filter, Judged
from services.feedback.store.records import JUDGE, RANKED_KINDS

logger = logging.getLogger(__name__)

LAST_AUDITED = 100
"""Audited tasks that count, the newest: a model of an endpoint may change."""


def audit(service: Service, project: str, judge: str) -> BesidePeople:
    """Return a judge's agreement with people on the newest tasks that it and at least two people judged."""
    entries = service.store.audits.entries(project, judge, last=LAST_AUDITED)
    found = [one.judgment for one in service.store.snapshots.of_entries(entries)]
    return beside_people(found, judge, seed=SEED)


def look(service: Service, entry: str) -> None:
    """Pause the active judges of a judgment's task that are below people."""
    for project, judge in service.store.audits.judges_of(entry):
        found = audit(service, project, judge)
        if found.below:
            service.store.people.change(judge, {"state": "paused"})
            logger.warning(
                "judge %s is paused: on %d audited tasks it says what people say in %.1f%%, and they among "
                "themselves in %.1f%%",
                judge,
                found.tasks,
                100 * (found.with_people.alike or 0),
                100 * (found.people.alike or 0),
            )


def judges(service: Service, project: str) -> list[dict[str, Any]]:
    """Return the figures of each judge of a project, in the order in which they were added."""
    wanted = Filter(project=project, kinds=RANKED_KINDS, people=(JUDGE,))
    own: dict[str, list[Judged]] = {}
    for one in service.store.snapshots.judged(wanted):
        own.setdefault(one.entry.person or "", []).append(one)
    return [
        {
            **{"person": person.id, "handle": person.handle, "state": person.state},
            "paused": person.paused,
            **_of_judgments(own[person.id]),
            "audit": audit(service, project, person.id).as_json(),
        }
        for person in service.store.people.all()
        if person.id in own
    ]


def _of_judgments(found: list[Judged]) -> dict[str, Any]:
    pairs = tied = comparisons = consistent = 0
    for one in found:
        ranks = list(one.judgment.ranks.values())
        pairs += len(ranks) * (len(ranks) - 1) // 2
        tied += sum(rank == other for place, rank in enumerate(ranks) for other in ranks[:place])
        recorded = ((one.entry.body or {}).get("details") or {}).get("comparisons")
        # Details are what the program says; another program may say something else there.
        for comparison in recorded if isinstance(recorded, list) else ():
            if isinstance(comparison, dict) and isinstance(comparison.get("consistent"), bool):
                comparisons += 1
                consistent += comparison["consistent"]
    length = judgments.length_bias([one.judgment for one in found], seed=SEED)
    return {
        "judgments": len(found),
        "tied": tied / pairs if pairs else None,
        "consistent": consistent / comparisons if comparisons else None,
        "length": length.as_json(),
    }
