"""Forgetting: a person, an end user or a prompt leaves every table; the log keeps that it happened.

The transaction deletes and marks; then the files of the database are scrubbed. An erasure of which only the
first part is done is listed as not scrubbed, and `scrub` finishes it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.errors import NotFound, OutOfSpace, Unavailable
from services.feedback.store.artifacts import FORGETTABLE, Reach, reached
from services.feedback.store.base import Connection, Row, listed
from services.feedback.store.canonical import canonical
from services.feedback.store.context import Context
from services.feedback.store.limits import check_choice, check_identifier
from services.feedback.store.log import append, read_head
from services.feedback.store.people import end_sessions, require_person
from services.feedback.store.tasks import settle

logger = logging.getLogger(__name__)

_CHUNK = 500
"""Ids of one statement."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """A proof that something was forgotten; it does not say what."""

    id: str
    """Id of its entry in the log."""
    kind: str
    """`person`, `subject` or `prompt`."""
    actor: str
    """Who asked for it: a person's id, or the name of an API key."""
    at: float
    """When."""
    entries: int
    """Entries whose contents were deleted."""
    artifacts: tuple[str, ...]
    """Snapshots and models that had learnt from it; they are tainted from now on."""
    scrubbed: float | None
    """When the files were free of the deleted texts; None until then."""


class Erasures:
    """What was forgotten."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def forget(self, kind: str, name: str, *, actor: str, scrub: bool = True) -> Erasure:
        """Forget a person, an end user or a prompt, with all that `Artifacts.reach` lists.

        Contents of entries, prompts, answers and drafts are deleted, tasks that showed them are withdrawn,
        other tasks of a forgotten person want another judgment, artifacts are tainted, and a person loses
        handle, subject, pseudonym, invitations and sessions.

        Args:
            kind: `person`, `subject` or `prompt`.
            name: id of the person, keyed hash of the end user, or id of the prompt.
            actor: who asks for it: a person's id, or the name of an API key.
            scrub: whether the files are scrubbed at once, which takes time in a large store; otherwise
                `scrub` does it for several erasures together. The erasure holds even if that fails.

        Raises:
            InvalidInput: the kind or the actor is invalid.
            NotFound: there is no such person, end user or prompt, or it is forgotten already.
        """
        check_choice("kind", kind, FORGETTABLE)
        check_identifier("actor", actor)
        now = self._context.now()
        with self._context.database.writing() as connection:
            found = _locked(connection, kind, name)
            _delete(connection, found, now)
            if kind == "person":
                _forget_person(connection, name)
            body = {"kind": kind, "actor": actor, "entries": found.entries, "artifacts": found.artifacts}
            entry = append(connection, {"kind": "erasure", "at": now}, body)
            (row,) = connection.run(
                """
                INSERT INTO erasure (id, kind, actor, at, entries, artifacts)
                VALUES (:id, :kind, :actor, :at, :entries, :artifacts) RETURNING *
                """,
                id=entry.id,
                kind=kind,
                actor=actor,
                at=now,
                entries=len(found.entries),
                artifacts=canonical(found.artifacts),
            )
        if scrub:
            try:
                self.scrub()
            except (Unavailable, OutOfSpace) as error:
                logger.warning("the files are not free of erased texts yet, scrub them later: %s", error)
        return self.get(row["id"])

    def get(self, erasure: str) -> Erasure:
        """Return an erasure.

        Raises:
            NotFound: there is none.
        """
        with self._context.database.reading() as connection:
            row = connection.one("SELECT * FROM erasure WHERE id = :id", id=erasure)
        if row is None:
            raise NotFound(f"no erasure {erasure!r}")
        return _erasure(row)

    def all(self) -> list[Erasure]:
        """Return all erasures, the oldest first."""
        with self._context.database.reading() as connection:
            return [_erasure(row) for row in connection.run("SELECT * FROM erasure ORDER BY at, id")]

    def scrub(self) -> bool:
        """Remove the texts of all erasures from the files, where that is not done; return whether it is done
        now.

        It needs a moment without readers. Call it at the start, and later if it was not possible.
        """
        with self._context.database.reading() as connection:
            waiting = connection.run("SELECT id FROM erasure WHERE scrubbed IS NULL")
        if not waiting:
            return True
        if not self._context.database.scrub():
            return False
        with self._context.database.writing() as connection:
            for row in waiting:
                connection.run(
                    "UPDATE erasure SET scrubbed = :now WHERE id = :id", now=self._context.now(), id=row["id"]
                )
        return True


def _locked(connection: Connection, kind: str, name: str) -> Reach:
    """Return what is to be forgotten, with every row locked to which others could add.

    Raises:
        NotFound: there is nothing.
    """
    if kind == "person":
        require_person(connection, name)
    found = reached(connection, kind, name)
    if kind != "person" and not found.prompts:
        raise NotFound(f"no {'prompt' if kind == 'prompt' else 'prompt of the end user'} {name!r}")
    _each(connection, "SELECT id FROM prompt WHERE id IN ({ids}) ORDER BY id FOR UPDATE", found.prompts)
    theirs = connection.run("SELECT task FROM assignment WHERE person = :person", person=name)
    tasks = sorted({*found.tasks, *(row["task"] for row in theirs)})
    _each(connection, "SELECT id FROM task WHERE id IN ({ids}) ORDER BY id FOR UPDATE", tasks)
    read_head(connection, lock=True)
    return reached(connection, kind, name)


def _delete(connection: Connection, found: Reach, now: float) -> None:
    _each(connection, "DELETE FROM content WHERE entry IN ({ids})", found.entries)
    for statement in (
        "DELETE FROM draft WHERE assignment IN (SELECT id FROM assignment WHERE task IN ({ids}))",
        "UPDATE assignment SET shown = '[]' WHERE task IN ({ids})",
        "DELETE FROM task_answer WHERE task IN ({ids})",
        """
        UPDATE task SET state = 'withdrawn', prompt = NULL, digest = NULL, gold = NULL, review = NULL
        WHERE id IN ({ids})
        """,
        "UPDATE access SET object = '' WHERE object IN ({ids})",
    ):
        _each(connection, statement, found.tasks)
    for statement in (
        "DELETE FROM answer WHERE id IN ({ids})",
        "UPDATE access SET object = '' WHERE object IN ({ids})",
    ):
        _each(connection, statement, found.answers)
    for statement in (
        "DELETE FROM prompt WHERE id IN ({ids})",
        "DELETE FROM made_from WHERE source IN ({ids})",
        "UPDATE access SET object = '' WHERE object IN ({ids})",
    ):
        _each(connection, statement, found.prompts)
    _each(
        connection,
        "UPDATE artifact SET tainted = :now WHERE tainted IS NULL AND id IN ({ids})",
        found.artifacts,
        now=now,
    )


def _forget_person(connection: Connection, person: str) -> None:
    rows = connection.run(
        "SELECT task FROM assignment WHERE person = :person AND state <> 'skipped' ORDER BY task",
        person=person,
    )
    for statement in (
        "DELETE FROM draft WHERE assignment IN (SELECT id FROM assignment WHERE person = :person)",
        "UPDATE assignment SET state = 'withdrawn' WHERE person = :person AND state <> 'skipped'",
        "DELETE FROM invitation WHERE person = :person",
        """
        UPDATE person SET state = 'forgotten', handle = NULL, subject = NULL, pseudonym = NULL,
          hourly_cost = NULL
        WHERE id = :person
        """,
    ):
        connection.run(statement, person=person)
    end_sessions(connection, person)
    settle(connection, [row["task"] for row in rows])


def _each(connection: Connection, statement: str, ids: Sequence[str], **values: object) -> None:
    """Execute a statement for ids, some hundred at a time."""
    for start in range(0, len(ids), _CHUNK):
        names, found = listed("id", ids[start : start + _CHUNK])
        connection.run(statement.format(ids=names), **values, **found)


def _erasure(row: Row) -> Erasure:
    fields = {name: row[name] for name in Erasure.__dataclass_fields__}
    return Erasure(**(fields | {"artifacts": tuple(json.loads(row["artifacts"]))}))
