"""Projects and the versions of their guidelines."""

from __future__ import annotations

import json
from dataclasses import asdict

from fairlead.errors import InvalidInput, NotFound
from services.feedback.store.base import Connection, Row
from services.feedback.store.canonical import canonical, sha256
from services.feedback.store.context import Context, new_id
from services.feedback.store.limits import (
    Limits,
    check_choice,
    check_choices,
    check_number,
    check_text,
    check_whole,
    check_word,
)
from services.feedback.store.people import require_person
from services.feedback.store.records import TASK_KINDS, Guideline, Project, ProjectSettings, Reading

LEAST_AUDIT = 0.05
"""Smallest `audit_share`: a judge that nobody looks at is not to be trusted."""
_STATES = ("active", "paused", "finished")


class Projects:
    """The projects of the store."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def create(self, settings: ProjectSettings) -> Project:
        """Create a project.

        Raises:
            InvalidInput: a setting is invalid, or there is a project of this name.
        """
        values = _checked(settings, self._context.limits)
        with self._context.database.writing() as connection:
            row = connection.one(
                """
                INSERT INTO project (id, name, kinds, min_answers, max_answers, overlap, shared_share,
                  gold_share, lease_seconds, program_lease_seconds, revise_seconds, judges, audit_share,
                  least_gold, state, made)
                VALUES (:id, :name, :kinds, :min_answers, :max_answers, :overlap, :shared_share,
                  :gold_share, :lease_seconds, :program_lease_seconds, :revise_seconds, :judges,
                  :audit_share, :least_gold, 'active', :made)
                ON CONFLICT DO NOTHING RETURNING *
                """,
                id=new_id(),
                made=self._context.now(),
                **values,
            )
        if row is None:
            raise InvalidInput("name", got=settings.name, allowed="a name that no other project has")
        return _project(row)

    def get(self, name: str) -> Project:
        """Return the project of a name or an id.

        Raises:
            NotFound: there is none.
        """
        with self._context.database.reading() as connection:
            row = connection.one("SELECT * FROM project WHERE name = :name OR id = :name", name=name)
            if row is None:
                names = [other["name"] for other in connection.run("SELECT name FROM project ORDER BY name")]
                raise NotFound(f"no project {name!r}; there are: {', '.join(names) or 'none'}")
        return _project(row)

    def all(self) -> list[Project]:
        """Return all projects by name."""
        with self._context.database.reading() as connection:
            return [_project(row) for row in connection.run("SELECT * FROM project ORDER BY name")]

    def change(self, project: str, settings: ProjectSettings, *, state: str | None = None) -> Project:
        """Change the settings and the state of a project. Tasks keep the overlap that they have.

        Args:
            project: its id.
            settings: all settings.
            state: `active`, `paused` or `finished`; by default it stays.

        Raises:
            InvalidInput: a setting is invalid, or another project has this name.
            NotFound: there is no such project.
        """
        values = _checked(settings, self._context.limits)
        if state is not None:
            check_choice("state", state, _STATES)
        with self._context.database.writing() as connection:
            known = require_project(connection, project, lock=True)
            if connection.one(
                "SELECT id FROM project WHERE name = :name AND id <> :id", name=settings.name, id=project
            ):
                raise InvalidInput("name", got=settings.name, allowed="a name that no other project has")
            (row,) = connection.run(
                """
                UPDATE project SET name = :name, kinds = :kinds, min_answers = :min_answers,
                  max_answers = :max_answers, overlap = :overlap, shared_share = :shared_share,
                  gold_share = :gold_share, lease_seconds = :lease_seconds,
                  program_lease_seconds = :program_lease_seconds, revise_seconds = :revise_seconds,
                  judges = :judges, audit_share = :audit_share, least_gold = :least_gold, state = :state
                WHERE id = :id RETURNING *
                """,
                id=project,
                state=state or known.state,
                **values,
            )
        return _project(row)

    def add_guideline(self, project: str, text: str) -> Guideline:
        """Add a version of the guidelines; the text of the newest version again is not a new one.

        Raises:
            InvalidInput: the text is blank or too long.
            NotFound: there is no such project.
        """
        written = canonical(check_text("text", text, self._context.limits.text_characters))
        with self._context.database.writing() as connection:
            require_project(connection, project, lock=True)
            newest = _newest(connection, project)
            if newest is not None and newest["text"] == written:
                return _guideline(newest)
            (row,) = connection.run(
                """
                INSERT INTO guideline (project, version, text, sha256, made)
                VALUES (:project, :version, :text, :sha256, :made) RETURNING *
                """,
                project=project,
                version=1 if newest is None else newest["version"] + 1,
                text=written,
                sha256=sha256(written),
                made=self._context.now(),
            )
        return _guideline(row)

    def guidelines(self, project: str) -> list[Guideline]:
        """Return all versions of the guidelines, the newest last."""
        with self._context.database.reading() as connection:
            rows = connection.run(
                "SELECT * FROM guideline WHERE project = :project ORDER BY version", project=project
            )
        return [_guideline(row) for row in rows]

    def note_reading(self, project: str, version: int, person: str, *, quiz: float | None = None) -> Reading:
        """Note that a person has read a version of the guidelines; of several quizzes the best counts.

        Args:
            project: id of the project.
            version: of the guidelines.
            person: id of the person.
            quiz: share of right answers in a quiz.

        Raises:
            InvalidInput: the share is invalid.
            NotFound: there is no such version or person.
        """
        if quiz is not None:
            check_number("quiz", quiz, 0.0, 1.0)
        with self._context.database.writing() as connection:
            require_person(connection, person)
            if not connection.one(
                "SELECT version FROM guideline WHERE project = :project AND version = :version",
                project=project,
                version=version,
            ):
                raise NotFound(f"no version {version} of the guidelines of project {project!r}")
            (row,) = connection.run(
                """
                INSERT INTO reading (project, version, person, at, quiz)
                VALUES (:project, :version, :person, :at, :quiz)
                ON CONFLICT (person, project, version) DO UPDATE SET at = excluded.at,
                  quiz = CASE WHEN reading.quiz IS NULL OR excluded.quiz > reading.quiz
                    THEN excluded.quiz ELSE reading.quiz END
                RETURNING *
                """,
                project=project,
                version=version,
                person=person,
                at=self._context.now(),
                quiz=quiz,
            )
        return _reading(row)

    def readings(self, project: str, person: str) -> list[Reading]:
        """Return which versions of the guidelines a person has read, the newest last."""
        with self._context.database.reading() as connection:
            rows = connection.run(
                "SELECT * FROM reading WHERE person = :person AND project = :project ORDER BY version",
                person=person,
                project=project,
            )
        return [_reading(row) for row in rows]


def require_project(connection: Connection, project: str, *, lock: bool = False) -> Project:
    """Return a project by its id.

    Args:
        connection: within a transaction.
        project: the id.
        lock: whether others have to wait until the transaction ends.

    Raises:
        NotFound: there is none.
    """
    statement = "SELECT * FROM project WHERE id = :id" + (" FOR UPDATE" if lock else "")
    row = connection.one(statement, id=project)
    if row is None:
        raise NotFound(f"no project with the id {project!r}")
    return _project(row)


def guideline_version(connection: Connection, project: str) -> int:
    """Return the newest version of the guidelines; 0 if there are none."""
    newest = _newest(connection, project)
    return 0 if newest is None else int(newest["version"])


def _newest(connection: Connection, project: str) -> Row | None:
    return connection.one(
        "SELECT * FROM guideline WHERE project = :project ORDER BY version DESC LIMIT 1", project=project
    )


def _checked(settings: ProjectSettings, limits: Limits) -> dict[str, object]:
    low = check_whole("min_answers", settings.min_answers, 2, limits.answers)
    values = asdict(settings) | {
        "name": check_word("name", settings.name),
        "kinds": canonical(check_choices("kinds", settings.kinds, TASK_KINDS)),
        "min_answers": low,
        "max_answers": check_whole("max_answers", settings.max_answers, low, limits.answers),
        "overlap": check_whole("overlap", settings.overlap, 1, limits.overlap),
        "judges": check_choice("judges", settings.judges, ("none", "train")),
        "revise_seconds": check_number("revise_seconds", settings.revise_seconds, 0.0),
    }
    for name in ("shared_share", "gold_share", "least_gold"):
        values[name] = check_number(name, getattr(settings, name), 0.0, 1.0)
    values["audit_share"] = check_number("audit_share", settings.audit_share, LEAST_AUDIT, 1.0)
    for name in ("lease_seconds", "program_lease_seconds"):
        values[name] = check_number(name, getattr(settings, name), 0.001)
    return values


def _project(row: Row) -> Project:
    names = ProjectSettings.__dataclass_fields__
    settings = {name: row[name] for name in names} | {"kinds": tuple(json.loads(row["kinds"]))}
    return Project(id=row["id"], settings=ProjectSettings(**settings), state=row["state"], made=row["made"])


def _reading(row: Row) -> Reading:
    return Reading(version=row["version"], at=row["at"], quiz=row["quiz"])


def _guideline(row: Row) -> Guideline:
    return Guideline(
        project=row["project"],
        version=row["version"],
        text=json.loads(row["text"]),
        sha256=row["sha256"],
        made=row["made"],
    )
