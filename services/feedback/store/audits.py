"""The judgments that compare a model judge with people."""

from __future__ import annotations

from services.feedback.store.base import listed
from services.feedback.store.context import Context
from services.feedback.store.judged import COUNTING
from services.feedback.store.records import RANKED_KINDS

_COUNTING = ", ".join(f"'{kind}'" for kind in COUNTING)
_RANKED = ", ".join(f"'{kind}'" for kind in RANKED_KINDS)
_FROM = f"""
    FROM entry JOIN person ON person.id = entry.person JOIN content ON content.entry = entry.id
    WHERE entry.kind IN ({_COUNTING}) AND (person.id = :judge OR person.kind <> 'judge')
      AND NOT EXISTS (SELECT 1 FROM entry AS later WHERE later.replaces = entry.id)
    """
_TASKS = f"""
    SELECT entry.task {_FROM} AND entry.task IN (
        SELECT task.id FROM assignment JOIN task ON task.id = assignment.task
        WHERE assignment.person = :judge AND assignment.state IN ('done', 'late')
          AND task.project = :project AND task.kind IN ({_RANKED}) AND task.why <> 'gold'
      )
    GROUP BY entry.task
    HAVING SUM(CASE WHEN person.id = :judge THEN 1 ELSE 0 END) = 1 AND COUNT(*) > 2
    ORDER BY MAX(entry.seq) DESC LIMIT :last
    """


class Audits:
    """Tasks that a judge and people judged."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def judges_of(self, entry: str) -> list[tuple[str, str]]:
        """Return the project of an entry's task with each active judge that has judged it."""
        with self._context.database.reading() as connection:
            rows = connection.run(
                """
                SELECT task.project, person.id FROM entry JOIN task ON task.id = entry.task
                JOIN assignment ON assignment.task = task.id JOIN person ON person.id = assignment.person
                WHERE entry.id = :entry AND task.why <> 'gold' AND person.kind = 'judge'
                  AND person.state = 'active' AND assignment.state IN ('done', 'late')
                ORDER BY person.id
                """,
                entry=entry,
            )
        return [(row["project"], row["id"]) for row in rows]

    def entries(self, project: str, judge: str, *, last: int) -> list[str]:
        """Return the entries that count of the newest tasks that a judge and at least two people judged.

        Those of other judges are left out.

        Args:
            project: id of the project.
            judge: id of the judge.
            last: how many tasks.
        """
        with self._context.database.reading() as connection:
            tasks = connection.run(_TASKS, project=project, judge=judge, last=last)
            if not tasks:
                return []
            names, values = listed("task", [row["task"] for row in tasks])
            rows = connection.run(
                f"SELECT entry.id {_FROM} AND entry.task IN ({names}) ORDER BY entry.seq",
                judge=judge,
                **values,
            )
        return [row["id"] for row in rows]
