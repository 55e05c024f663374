"""People: labelers, reviewers, leads, auditors and programs; how they are invited, and their sessions.

Tokens have 256 random bits and are kept as digests only.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping

from fairlead.errors import InvalidInput, NotFound, PermissionDenied, Unauthenticated
from services.feedback.store.base import Connection, Row
from services.feedback.store.context import Context, new_id
from services.feedback.store.limits import check_choice, check_handle, check_identifier, check_number
from services.feedback.store.records import COHORTS, JUDGE, PERSON_KINDS, ROLES, NewPerson, Person

INVITATION_SECONDS = 7 * 86_400.0
"""How long an invitation may be used."""
SESSION_IDLE_SECONDS = 12 * 3_600.0
"""A session ends after this time without a request."""
SESSION_SECONDS = 7 * 86_400.0
"""A session ends after this time."""
_TOUCH_SECONDS = 60.0
"""How old `seen` of a session may become before a request writes it again."""


class People:
    """The people of the store."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def add(self, person: NewPerson) -> Person:
        """Add a person.

        Raises:
            InvalidInput: a field is invalid, or the handle or the subject is taken.
        """
        check_choice("kind", person.kind, PERSON_KINDS)
        check_choice("role", person.role, ROLES)
        check_choice("cohort", person.cohort, COHORTS)
        _check_cohort(person.kind, person.cohort)
        check_handle("handle", person.handle)
        if person.subject is not None:
            check_identifier("subject", person.subject)
        if person.hourly_cost is not None:
            check_number("hourly_cost", person.hourly_cost, 0.0)
        with self._context.database.writing() as connection:
            row = connection.one(
                """
                INSERT INTO person (id, kind, role, state, cohort, handle, subject, pseudonym, hourly_cost,
                  made)
                VALUES (:id, :kind, :role, :state, :cohort, :handle, :subject, :pseudonym, :hourly_cost,
                  :made)
                ON CONFLICT DO NOTHING RETURNING *
                """,
                id=new_id(),
                kind=person.kind,
                role=person.role,
                state="active" if person.active or person.kind != "labeler" else "invited",
                cohort=person.cohort,
                handle=person.handle,
                subject=person.subject,
                pseudonym=f"labeler-{secrets.token_hex(6)}",
                hourly_cost=person.hourly_cost,
                made=self._context.now(),
            )
        if row is None:
            raise InvalidInput(
                "handle", got=person.handle, allowed="a handle and a subject that nobody else has"
            )
        return _person(row)

    def get(self, person: str) -> Person:
        """Return a person by id.

        Raises:
            NotFound: there is none.
        """
        return self._found("id", person)

    def by_handle(self, handle: str) -> Person:
        """Return a person by handle.

        Raises:
            NotFound: there is none.
        """
        return self._found("handle", handle)

    def by_subject(self, subject: str) -> Person:
        """Return a person by what an identity provider calls them.

        Raises:
            NotFound: there is none.
        """
        return self._found("subject", subject)

    def all(self) -> list[Person]:
        """Return all people, those who are forgotten too, in the order in which they were added."""
        with self._context.database.reading() as connection:
            return [_person(row) for row in connection.run("SELECT * FROM person ORDER BY made, id")]

    def change(self, person: str, changes: Mapping[str, object]) -> Person:
        """Change what a lead may change. Pausing a person ends their sessions.

        Args:
            person: the id.
            changes: new values of some of `role`, `state`, `cohort` and `hourly_cost`. The cohort is fixed by
                the first judgment, since held-out people must never have been trained on.

        Raises:
            InvalidInput: a value is invalid, or the cohort cannot be changed any more.
            NotFound: there is no such person, or they are forgotten.
        """
        checks = {"role": ROLES, "state": ("active", "paused"), "cohort": COHORTS}
        for name, value in changes.items():
            if name == "hourly_cost":
                check_number(name, value, 0.0)
            else:
                check_choice("field", name, (*checks, "hourly_cost"))
                check_choice(name, value, checks[name])
        with self._context.database.writing() as connection:
            known = require_person(connection, person)
            wanted = changes.get("cohort", known.cohort)
            _check_cohort(known.kind, wanted)
            if wanted != known.cohort and connection.one(
                "SELECT id FROM entry WHERE person = :person LIMIT 1", person=person
            ):
                raise InvalidInput(
                    "cohort", got=wanted, allowed=f"{known.cohort}: the person has judged already"
                )
            values = {name: getattr(known, name) for name in (*checks, "hourly_cost")} | dict(changes)
            (row,) = connection.run(
                """
                UPDATE person SET role = :role, state = :state, cohort = :cohort, hourly_cost = :hourly_cost,
                  paused = :paused
                WHERE id = :id RETURNING *
                """,
                id=person,
                paused=None if values["state"] != "paused" else known.paused or self._context.now(),
                **values,
            )
            if values["state"] == "paused":
                end_sessions(connection, person)
        return _person(row)

    def invite(self, person: str) -> str:
        """Return the token of an invitation, which only its receiver will know. Older ones are void.

        Raises:
            NotFound: there is no such person, or they are forgotten.
        """
        token = secrets.token_urlsafe(32)
        with self._context.database.writing() as connection:
            require_person(connection, person)
            connection.run(
                "DELETE FROM invitation WHERE expires <= :now OR (person = :person AND used IS NULL)",
                person=person,
                now=self._context.now(),
            )
            connection.run(
                "INSERT INTO invitation (sha256, person, expires) VALUES (:sha256, :person, :expires)",
                sha256=_digest(token),
                person=person,
                expires=self._context.now() + INVITATION_SECONDS,
            )
        return token

    def accept(self, token: str) -> Person:
        """Use an invitation, which works once, and return the person, who is active from now on.

        Raises:
            Unauthenticated: it is unknown, used or expired.
            PermissionDenied: the person is paused.
        """
        now = self._context.now()
        with self._context.database.writing() as connection:
            row = connection.one(
                """
                UPDATE invitation SET used = :now
                WHERE sha256 = :sha256 AND used IS NULL AND expires > :now RETURNING person
                """,
                now=now,
                sha256=_digest(token),
            )
            if row is None:
                raise Unauthenticated("this invitation is unknown, used or expired; ask for a new one")
            person = require_person(connection, row["person"])
            if person.state == "paused":
                raise PermissionDenied("this person is paused; the lead of the project can say why")
            (row,) = connection.run(
                "UPDATE person SET state = 'active' WHERE id = :id RETURNING *", id=person.id
            )
        return _person(row)

    def start_session(self, person: str) -> str:
        """Return the token of a new session.

        Raises:
            NotFound: there is no such person, or they are forgotten.
            PermissionDenied: the person is not active.
        """
        token = secrets.token_urlsafe(32)
        now = self._context.now()
        with self._context.database.writing() as connection:
            require_active(require_person(connection, person))
            connection.run("DELETE FROM session WHERE expires <= :now", now=now)
            connection.run(
                """
                INSERT INTO session (sha256, person, made, seen, expires)
                VALUES (:sha256, :person, :now, :now, :expires)
                """,
                sha256=_digest(token),
                person=person,
                now=now,
                expires=now + SESSION_SECONDS,
            )
        return token

    def of_session(self, token: str) -> Person:
        """Return the person of a session.

        Raises:
            Unauthenticated: it is unknown or has ended.
            PermissionDenied: the person is not active.
        """
        now = self._context.now()
        key = {"sha256": _digest(token), "now": now, "idle": now - SESSION_IDLE_SECONDS}
        with self._context.database.reading() as connection:
            row = connection.one(
                """
                SELECT person.*, session.seen FROM session JOIN person ON person.id = session.person
                WHERE session.sha256 = :sha256 AND session.expires > :now AND session.seen > :idle
                """,
                **key,
            )
        if row is None:
            raise Unauthenticated("the session is unknown or has ended; sign in again")
        if row["seen"] < now - _TOUCH_SECONDS:
            with self._context.database.writing(durable=False) as connection:
                connection.run(
                    "UPDATE session SET seen = :now WHERE sha256 = :sha256 AND seen > :idle", **key
                )
        return require_active(_person(row))

    def end_session(self, token: str) -> None:
        """End a session, at once."""
        with self._context.database.writing() as connection:
            connection.run("DELETE FROM session WHERE sha256 = :sha256", sha256=_digest(token))

    def end_sessions(self, person: str) -> None:
        """End all sessions of a person, at once."""
        with self._context.database.writing() as connection:
            end_sessions(connection, person)

    def _found(self, column: str, value: str) -> Person:
        with self._context.database.reading() as connection:
            row = connection.one(f"SELECT * FROM person WHERE {column} = :value", value=value)
        if row is None:
            raise NotFound(f"no person with the {column} {value!r}")
        return _person(row)


def require_person(connection: Connection, person: str) -> Person:
    """Return a person, who is locked until the transaction ends.

    Raises:
        NotFound: there is no such person, or they are forgotten.
    """
    row = connection.one("SELECT * FROM person WHERE id = :id FOR UPDATE", id=person)
    if row is None or row["state"] == "forgotten":
        raise NotFound(f"no person with the id {person!r}")
    return _person(row)


def require_people(connection: Connection, people: Collection[str]) -> None:
    """Check that people are known, and keep them until the transaction ends.

    Raises:
        NotFound: one is unknown or forgotten.
    """
    for person in sorted(people):
        require_person(connection, person)


def require_active(person: Person) -> Person:
    """Return the person.

    Raises:
        PermissionDenied: they are invited only, paused or forgotten.
    """
    if person.state != "active":
        raise PermissionDenied(f"this person is {person.state}; the lead of the project can change that")
    return person


def end_sessions(connection: Connection, person: str) -> None:
    """End all sessions of a person."""
    connection.run("DELETE FROM session WHERE person = :person", person=person)


def _check_cohort(kind: str, cohort: object) -> None:
    """Check that a judge is not held out: what people say measures judges, and never the reverse.

    Raises:
        InvalidInput: if it is.
    """
    if kind == JUDGE and cohort != "train":
        raise InvalidInput("cohort", got=cohort, allowed="train, for a judge: only people are held out")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _person(row: Row) -> Person:
    return Person(**{name: row[name] for name in Person.__dataclass_fields__})
