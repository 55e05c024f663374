"""Labelers who may take no task of a project for now: they missed too many known answers."""

from __future__ import annotations

from dataclasses import dataclass

from services.feedback.store.base import Row
from services.feedback.store.context import Context
from services.feedback.store.judged import COUNTING
from services.feedback.store.records import JUDGE, RANKED_KINDS

_COUNTING = ", ".join(f"'{kind}'" for kind in COUNTING)
_RANKED = ", ".join(f"'{kind}'" for kind in RANKED_KINDS)


@dataclass(frozen=True, slots=True)
class Hold:
    """That somebody is held."""

    person: str
    """Id of the person."""
    at: float
    """Since when."""
    accepted: int
    """Questions with known answers that they ranked as accepted."""
    asked: int
    """Questions that counted."""


class Holds:
    """Who is held."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def of_project(self, project: str) -> dict[str, Hold]:
        """Return who is held in a project, by the person's id."""
        with self._context.database.reading() as connection:
            rows = connection.run(
                "SELECT * FROM hold WHERE project = :project AND released IS NULL ORDER BY at",
                project=project,
            )
        return {row["person"]: _hold(row) for row in rows}

    def of_person(self, project: str, person: str) -> Hold | None:
        """Return whether somebody is held in a project."""
        with self._context.database.reading() as connection:
            row = connection.one(
                "SELECT * FROM hold WHERE project = :project AND person = :person AND released IS NULL",
                project=project,
                person=person,
            )
        return None if row is None else _hold(row)

    def start(self, project: str, person: str, *, accepted: int, asked: int) -> None:
        """Hold a person, unless they are held already."""
        with self._context.database.writing() as connection:
            connection.run(
                """
                INSERT INTO hold (project, person, at, accepted, asked)
                SELECT :project, :person, :now, :accepted, :asked WHERE NOT EXISTS (
                  SELECT 1 FROM hold WHERE project = :project AND person = :person AND released IS NULL
                ) ON CONFLICT DO NOTHING
                """,
                project=project,
                person=person,
                now=self._context.now(),
                accepted=accepted,
                asked=asked,
            )

    def release(self, project: str, person: str) -> None:
        """Let a person continue. What they answered before does not count any more."""
        with self._context.database.writing() as connection:
            connection.run(
                """
                UPDATE hold SET released = :now
                WHERE project = :project AND person = :person AND released IS NULL
                """,
                project=project,
                person=person,
                now=self._context.now(),
            )

    def measured_by(self, entry: str) -> tuple[str, str] | None:
        """Return project and person of an answer to a question with a known answer, if the project holds
        people who miss too many and the person is no judge; otherwise None.
        """
        with self._context.database.reading() as connection:
            row = connection.one(
                f"""
                SELECT task.project, entry.person FROM entry JOIN task ON task.id = entry.task
                JOIN project ON project.id = task.project JOIN person ON person.id = entry.person
                WHERE entry.id = :entry AND task.why = 'gold' AND project.least_gold > 0
                  AND person.kind <> '{JUDGE}' AND person.state <> 'forgotten'
                """,
                entry=entry,
            )
        return None if row is None else (row["project"], row["person"])

    def answers(self, project: str, person: str, *, last: int) -> list[str]:
        """Return the entries of a person's last answers to questions with known answers, after they were last
        released.
        """
        with self._context.database.reading() as connection:
            rows = connection.run(
                f"""
                SELECT entry.id FROM entry JOIN task ON task.id = entry.task
                WHERE entry.person = :person AND task.project = :project AND task.why = 'gold'
                  AND task.kind IN ({_RANKED}) AND entry.kind IN ({_COUNTING})
                  AND NOT EXISTS (SELECT 1 FROM entry AS later WHERE later.replaces = entry.id)
                  AND entry.at > (
                    SELECT COALESCE(MAX(released), 0) FROM hold WHERE project = :project AND person = :person
                  )
                ORDER BY entry.seq DESC LIMIT :last
                """,
                person=person,
                project=project,
                last=last,
            )
        return [row["id"] for row in rows]


def _hold(row: Row) -> Hold:
    return Hold(**{name: row[name] for name in Hold.__dataclass_fields__})
