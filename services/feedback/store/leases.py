"""Leases: which task a person gets next, and for how long.

There is one assignment for each task and person, forever. At any time the judgments in time and the leases
that have not ended are at most as many as a task wants, so a lease is a promise of a place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fairlead.errors import Conflict, NotFound
from services.feedback.store.base import Connection, Row, listed
from services.feedback.store.canonical import canonical, drawn, shown_order, turns_of
from services.feedback.store.context import Context, new_id
from services.feedback.store.limits import check_choices, check_object
from services.feedback.store.people import require_active, require_person
from services.feedback.store.projects import guideline_version, require_project
from services.feedback.store.records import TASK_KINDS, Assignment, Offer, Person, Project, Task
from services.feedback.store.tasks import answers_of, require_task

_NOT_WAITED = 32
"""Tasks locked by others that are passed over before waiting for one."""

_OWN = """
    SELECT assignment.id FROM assignment JOIN task ON task.id = assignment.task
    JOIN prompt ON prompt.id = task.prompt
    WHERE assignment.person = :person AND assignment.state = 'leased' AND task.project = :project
      AND task.state = 'open' AND prompt.state = 'screened' AND task.kind IN ({kinds})
    ORDER BY assignment.since, assignment.id
    """
_FREE = """
    SELECT task.id FROM task JOIN prompt ON prompt.id = task.prompt
    WHERE task.project = :project AND task.state = 'open' AND prompt.state = 'screened'
      AND task.why <> 'gold' AND task.kind IN ({kinds}) AND task.id NOT IN ({tried})
      AND NOT EXISTS (
        SELECT 1 FROM assignment WHERE assignment.task = task.id AND assignment.person = :person
      )
      AND NOT EXISTS (
        SELECT 1 FROM task_answer JOIN answer ON answer.id = task_answer.answer
        WHERE task_answer.task = task.id AND answer.author = :person
      )
      AND task.overlap > (
        SELECT COUNT(*) FROM assignment WHERE assignment.task = task.id
          AND (assignment.state = 'done' OR (assignment.state = 'leased' AND assignment.until > :now))
      )
    ORDER BY task.priority DESC, task.number LIMIT 1
    FOR UPDATE OF task"""
_GOLD = """
    SELECT task.id FROM task JOIN prompt ON prompt.id = task.prompt
    WHERE task.project = :project AND task.state = 'open' AND prompt.state = 'screened'
      AND task.why = 'gold' AND task.kind IN ({kinds})
      AND NOT EXISTS (
        SELECT 1 FROM assignment WHERE assignment.task = task.id AND assignment.person = :person
      )
      AND NOT EXISTS (
        SELECT 1 FROM task_answer JOIN answer ON answer.id = task_answer.answer
        WHERE task_answer.task = task.id AND answer.author = :person
      )
    ORDER BY task.priority DESC, task.number LIMIT 1
    """


class Leases:
    """Who works on what."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def take(self, person: str, project: str, *, kinds: Sequence[str] = TASK_KINDS) -> Offer | None:
        """Return a task for a person, or None if there is nothing to do now; see `take_many`."""
        return next(iter(self.take_many(person, project, kinds=kinds, count=1)), None)

    def take_many(
        self, person: str, project: str, *, kinds: Sequence[str] = TASK_KINDS, count: int
    ) -> list[Offer]:
        """Return at most `count` tasks for a person.

        The person's own open leases come first, even one that has ended if its place is free. Another is
        a gold question by the share of the project, or the open task of the highest priority that has a free
        place and that the person neither had nor wrote an answer of. A lease is not written to the disk at
        once: a loss of power may undo it, and the person's judgment is then refused as of an unknown
        assignment.

        Raises:
            InvalidInput: a kind is unknown.
            NotFound: there is no such person or project.
            PermissionDenied: the person is not active.
        """
        names, values = listed("kind", check_choices("kinds", kinds, TASK_KINDS))
        now = self._context.now()
        with self._context.database.writing(durable=False) as connection:
            # Two requests of one person must not get two tasks.
            someone = require_active(require_person(connection, person))
            known = require_project(connection, project)
            if known.state != "active":
                return []
            until = now + _lease_seconds(known, someone)
            found: list[str] = []
            own = connection.run(_OWN.format(kinds=names), person=person, project=project, **values)
            assignments = [require_assignment(connection, row["id"], person) for row in own]
            if count > 1:
                # In one order for all, so that two requests cannot wait for each other.
                lock_tasks(connection, [one.task for one in assignments])
            for assignment in assignments:
                if len(found) < count and self._renewed(connection, assignment, now, until):
                    found.append(assignment.id)
            while len(found) < count and (
                task := self._chosen(connection, known, person, (names, values), now)
            ):
                found.append(self._assign(connection, task, person, now, until))
            return [self._offer(connection, assignment, person) for assignment in found]

    def assign(self, person: str, task: str) -> Offer:
        """Give a person a certain task, for judgments that come from elsewhere. It is theirs once only.

        Raises:
            Conflict: the task has no free place, or is not open.
            NotFound: there is no such person or task.
            PermissionDenied: the person is not active.
        """
        now = self._context.now()
        with self._context.database.writing() as connection:
            someone = require_active(require_person(connection, person))
            wanted = require_task(connection, task, lock=True)
            known = connection.one(
                "SELECT id FROM assignment WHERE task = :task AND person = :person", task=task, person=person
            )
            if known is not None:
                return self._offer(connection, known["id"], person)
            if wanted.state != "open" or not has_place(connection, wanted, person, now):
                raise Conflict(f"task {task} has no free place: it wants {wanted.overlap} judgments")
            until = now + _lease_seconds(require_project(connection, wanted.project), someone)
            return self._offer(connection, self._assign(connection, wanted, person, now, until), person)

    def get(self, assignment: str, person: str) -> Offer:
        """Return an assignment of a person as it was shown.

        Raises:
            NotFound: the person has no such assignment, or its texts are erased.
        """
        with self._context.database.reading() as connection:
            return self._offer(connection, assignment, person)

    def page(self, person: str, project: str) -> list[Assignment]:
        """Return the assignments of a person in a project, the newest first, at most a page of them."""
        with self._context.database.reading() as connection:
            rows = connection.run(
                """
                SELECT assignment.* FROM assignment JOIN task ON task.id = assignment.task
                WHERE assignment.person = :person AND task.project = :project
                ORDER BY assignment.since DESC, assignment.id LIMIT :limit
                """,
                person=person,
                project=project,
                limit=self._context.limits.page,
            )
        return [_assignment(row) for row in rows]

    def renew(self, assignment: str, person: str) -> float:
        """Let a lease begin again, and return when it ends now.

        Raises:
            Conflict: its place has been given to somebody else, or nothing is left to do.
            NotFound: the person has no such assignment.
            PermissionDenied: the person is not active.
        """
        now = self._context.now()
        with self._context.database.writing(durable=False) as connection:
            someone = require_active(require_person(connection, person))
            known = require_assignment(connection, assignment, person)
            if known.state != "leased":
                raise Conflict(f"assignment {assignment} is {known.state}: there is no lease to renew")
            project = require_project(connection, require_task(connection, known.task).project)
            until = now + _lease_seconds(project, someone)
            if not self._renewed(connection, known, now, until):
                raise Conflict(
                    f"the lease of assignment {assignment} has ended and its place was given to somebody "
                    "else; hand in what is done: it counts as late"
                )
        return until

    def save_draft(self, assignment: str, person: str, body: Mapping[str, Any]) -> None:
        """Keep what a person has not handed in yet.

        Raises:
            Conflict: it is handed in or skipped already.
            InvalidInput: it is too large.
            NotFound: the person has no such assignment, or its texts are erased.
        """
        written = check_object("draft", body, self._context.limits.details_bytes)
        with self._context.database.writing(durable=False) as connection:
            require_person(connection, person)
            known = require_assignment(connection, assignment, person)
            if require_task(connection, known.task, lock=True).prompt is None:
                raise NotFound(f"the texts of assignment {assignment} are erased")
            if known.state != "leased":
                raise Conflict(f"assignment {assignment} is {known.state}: there is nothing to save")
            connection.run(
                """
                INSERT INTO draft (assignment, body, at) VALUES (:assignment, :body, :at)
                ON CONFLICT (assignment) DO UPDATE SET body = excluded.body, at = excluded.at
                """,
                assignment=assignment,
                body=written,
                at=self._context.now(),
            )

    def _assign(self, connection: Connection, task: Task, person: str, now: float, until: float) -> str:
        """Give out a locked task and return the id of the assignment."""
        found = new_id()
        connection.run(
            """
            INSERT INTO assignment (id, task, person, shown, guideline, since, until, state)
            VALUES (:id, :task, :person, :shown, :guideline, :now, :until, 'leased')
            """,
            id=found,
            task=task.id,
            person=person,
            shown=canonical(shown_order(self._context.secret, task.id, person, task.answers)),
            guideline=guideline_version(connection, task.project),
            now=now,
            until=until,
        )
        return found

    def _chosen(
        self,
        connection: Connection,
        project: Project,
        person: str,
        kinds: tuple[str, Mapping[str, str]],
        now: float,
    ) -> Task | None:
        """Return the task to give out, locked."""
        names, values = kinds
        asked: dict[str, object] = {"project": project.id, "person": person, **values}
        had = connection.one(
            "SELECT COUNT(*) AS number FROM assignment WHERE person = :person", person=person
        )
        number = str(had["number"]) if had else "0"
        gold = drawn(self._context.secret, project.settings.gold_share, "gold", project.id, person, number)
        if gold and (row := connection.one(_GOLD.format(kinds=names), **asked)):
            return require_task(connection, row["id"], lock=True)
        tried: list[str] = [""]
        while True:
            excluded, ids = listed("tried", tried)
            # In PostgreSQL others may hold a task for a moment. After some it is better to wait.
            skip = " SKIP LOCKED" if len(tried) <= _NOT_WAITED else ""
            statement = _FREE.format(kinds=names, tried=excluded)
            row = connection.one(statement + skip, now=now, **asked, **ids)
            if row is None and skip:
                row = connection.one(statement, now=now, **asked, **ids)
            if row is None:
                return None
            task = require_task(connection, row["id"], lock=True)
            if (
                task.state == "open"
                and task.prompt
                and places_taken(connection, task.id, person, now) < task.overlap
            ):
                return task
            tried.append(task.id)

    def _renewed(self, connection: Connection, assignment: Assignment, now: float, until: float) -> bool:
        """Renew a lease, unless it has ended and its place is not free any more."""
        task = require_task(connection, assignment.task, lock=True)
        if task.state != "open" or task.prompt is None:
            return False
        if assignment.until <= now and not has_place(connection, task, assignment.person, now):
            return False
        connection.run("UPDATE assignment SET until = :until WHERE id = :id", until=until, id=assignment.id)
        return True

    def _offer(self, connection: Connection, assignment: str, person: str) -> Offer:
        known = require_assignment(connection, assignment, person)
        task = require_task(connection, known.task)
        prompt = connection.one("SELECT turns FROM prompt WHERE id = :id", id=task.prompt or "")
        if prompt is None:
            raise NotFound(f"the texts of assignment {assignment} are erased")
        texts = answers_of(connection, known.shown)
        draft = connection.one("SELECT body FROM draft WHERE assignment = :id", id=assignment)
        return Offer(
            assignment=known,
            kind=task.kind,
            turns=turns_of(prompt["turns"]),
            answers=tuple((answer, texts[answer].text) for answer in known.shown),
            draft=None if draft is None else json.loads(draft["body"]),
        )


def lock_tasks(connection: Connection, tasks: Iterable[str]) -> dict[str, Task]:
    """Return tasks by id, locked in the order of their ids."""
    return {task: require_task(connection, task, lock=True) for task in sorted(set(tasks))}


def require_assignment(connection: Connection, assignment: str, person: str) -> Assignment:
    """Return an assignment of a person.

    Raises:
        NotFound: the person has no such assignment.
    """
    row = connection.one(
        "SELECT * FROM assignment WHERE id = :id AND person = :person", id=assignment, person=person
    )
    if row is None:
        raise NotFound(f"no assignment {assignment!r} of this person")
    return _assignment(row)


def has_place(connection: Connection, task: Task, person: str, now: float) -> bool:
    """Return whether a locked task has a place for a person besides those that others have."""
    return task.why == "gold" or places_taken(connection, task.id, person, now) < task.overlap


def places_taken(connection: Connection, task: str, person: str, now: float) -> int:
    """Return how many places of a locked task others have: judgments in time, and leases in force."""
    row = connection.one(
        """
        SELECT COUNT(*) AS number FROM assignment WHERE task = :task AND person <> :person
          AND (state = 'done' OR (state = 'leased' AND until > :now))
        """,
        task=task,
        person=person,
        now=now,
    )
    return int(row["number"]) if row else 0


def _lease_seconds(project: Project, person: Person) -> float:
    settings = project.settings
    return settings.lease_seconds if person.kind == "labeler" else settings.program_lease_seconds


def _assignment(row: Row) -> Assignment:
    fields = {name: row[name] for name in Assignment.__dataclass_fields__}
    return Assignment(**(fields | {"shown": tuple(json.loads(row["shown"]))}))
