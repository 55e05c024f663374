"""Artifacts: what was made of judgments, and what a person, an end user or a prompt reached."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.errors import Conflict, InvalidInput, NotFound
from services.feedback.store.base import Connection, Row
from services.feedback.store.canonical import canonical
from services.feedback.store.context import Context
from services.feedback.store.limits import check_choice, check_identifier, check_object, check_text
from services.feedback.store.log import read_head

MADE_KINDS = ("reward_model", "policy")
"""Kinds of artifacts that are made outside of the store."""
FORGETTABLE = ("person", "subject", "prompt")
"""What can be forgotten: a person, all prompts of an end user, a prompt."""

_REACHED = """
    WITH RECURSIVE
    prompts (id) AS (
      SELECT id FROM prompt WHERE id = :prompt OR subject = :subject OR author = :person
    ),
    answers (id) AS (
      SELECT id FROM answer WHERE author = :person OR prompt IN (SELECT id FROM prompts)
    ),
    tasks (id) AS (
      SELECT id FROM task WHERE prompt IN (SELECT id FROM prompts)
      UNION SELECT task FROM task_answer WHERE answer IN (SELECT id FROM answers)
    ),
    entries (id) AS (
      SELECT id FROM entry WHERE kind <> 'erasure' AND (person = :person OR task IN (SELECT id FROM tasks))
      UNION SELECT revised.id FROM entry JOIN entry AS revised
        ON revised.task = entry.task AND revised.person = entry.person WHERE entry.id = :judgment
    ),
    artifacts (id) AS (
      SELECT snapshot FROM member WHERE entry IN (SELECT id FROM entries)
      UNION SELECT artifact FROM made_from WHERE source IN (SELECT id FROM prompts)
      UNION SELECT made_from.artifact FROM made_from JOIN artifacts ON made_from.source = artifacts.id
    )
    SELECT 'prompts' AS what, id FROM prompts UNION ALL SELECT 'answers', id FROM answers
    UNION ALL SELECT 'tasks', id FROM tasks UNION ALL SELECT 'entries', id FROM entries
    UNION ALL SELECT 'artifacts', id FROM artifacts
    ORDER BY what, id
    """
_AROUND = """
    WITH RECURSIVE found (id) AS (
      SELECT {next} FROM made_from WHERE {this} = :id
      UNION SELECT made_from.{next} FROM made_from JOIN found ON made_from.{this} = found.id
    )
    SELECT artifact.* FROM artifact JOIN found ON found.id = artifact.id ORDER BY artifact.made, artifact.id
    """


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something made of judgments: a snapshot, a reward model or a policy."""

    id: str
    """The digest of a snapshot, or what its maker calls it."""
    kind: str
    """`snapshot`, `reward_model` or `policy`."""
    place: str
    """Where it is, such as a folder; empty for a snapshot."""
    details: Mapping[str, Any]
    """More about it."""
    made: float
    """When it was registered."""
    tainted: float | None
    """When something was erased that it, or what it was made from, had learnt from."""


@dataclass(frozen=True, slots=True)
class Reach:
    """All that a person, an end user, a prompt or a judgment is part of; ids in order."""

    prompts: tuple[str, ...] = ()
    """Their prompts."""
    answers: tuple[str, ...] = ()
    """Their answers, and all answers to those prompts."""
    tasks: tuple[str, ...] = ()
    """Tasks that show one of them."""
    entries: tuple[str, ...] = ()
    """What they said, and what anybody said about those tasks."""
    artifacts: tuple[str, ...] = ()
    """What was made of these, directly or not."""


class Artifacts:
    """What was made of what."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def add(
        self,
        kind: str,
        artifact: str,
        made_from: Sequence[str],
        *,
        place: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Register a model. One that is made from something tainted is tainted. The same again changes
        nothing.

        Args:
            kind: `reward_model` or `policy`.
            artifact: its id, such as a digest.
            made_from: ids of artifacts, or of prompts that it was trained on without a judgment.
            place: where it is.
            details: more about it.

        Raises:
            Conflict: there is another artifact of this id.
            InvalidInput: a field is invalid.
            NotFound: a source is unknown.
        """
        check_choice("kind", kind, MADE_KINDS)
        check_identifier("artifact", artifact)
        check_text("place", place, 4_096, empty=True)
        written = check_object("details", details or {}, self._context.limits.details_bytes)
        sources = sorted(set(made_from))
        if artifact in sources:
            raise InvalidInput("made_from", got=artifact, allowed="other artifacts than the new one")
        now = self._context.now()
        with self._context.database.writing() as connection:
            # An erasure at the same time has to find it.
            read_head(connection, lock=True)
            known = connection.one("SELECT * FROM artifact WHERE id = :id", id=artifact)
            if known is not None:
                rows = connection.run(
                    "SELECT source FROM made_from WHERE artifact = :id ORDER BY source", id=artifact
                )
                if known["kind"] != kind or [row["source"] for row in rows] != sources:
                    raise Conflict(
                        f"there is a {known['kind']} {artifact!r} that is made from something else"
                    )
                return artifact_of(known)
            tainted = [_source_taint(connection, source) for source in sources]
            (row,) = connection.run(
                """
                INSERT INTO artifact (id, kind, place, details, made, tainted)
                VALUES (:id, :kind, :place, :details, :made, :tainted) RETURNING *
                """,
                id=artifact,
                kind=kind,
                place=canonical(place),
                details=written,
                made=now,
                tainted=now if any(at is not None for at in tainted) else None,
            )
            connection.run_many(
                "INSERT INTO made_from (artifact, source) VALUES (:artifact, :source)",
                [{"artifact": artifact, "source": source} for source in sources],
            )
            return artifact_of(row)

    def get(self, artifact: str) -> Artifact:
        """Return an artifact.

        Raises:
            NotFound: there is none.
        """
        with self._context.database.reading() as connection:
            return require_artifact(connection, artifact)

    def all(self, *, tainted: bool = False) -> list[Artifact]:
        """Return all artifacts, the oldest first, or only those that are tainted."""
        with self._context.database.reading() as connection:
            rows = connection.run(
                "SELECT * FROM artifact"
                + (" WHERE tainted IS NOT NULL" if tainted else "")
                + " ORDER BY made, id"
            )
        return [artifact_of(row) for row in rows]

    def made_of(self, artifact: str) -> list[Artifact]:
        """Return all that was made from an artifact, directly or not.

        Raises:
            NotFound: there is no such artifact.
        """
        return self._around(artifact, this="source", next_="artifact")

    def sources(self, artifact: str) -> list[Artifact]:
        """Return all artifacts that an artifact was made from, directly or not.

        Raises:
            NotFound: there is no such artifact.
        """
        return self._around(artifact, this="artifact", next_="source")

    def reach(self, kind: str, name: str) -> Reach:
        """Return all that a person, an end user or a prompt is part of.

        Args:
            kind: `person`, `subject` or `prompt`.
            name: id of the person, keyed hash of the end user, or id of the prompt.
        """
        check_choice("kind", kind, FORGETTABLE)
        with self._context.database.reading() as connection:
            return reached(connection, kind, name)

    def _around(self, artifact: str, *, this: str, next_: str) -> list[Artifact]:
        with self._context.database.reading() as connection:
            require_artifact(connection, artifact)
            rows = connection.run(_AROUND.format(this=this, next=next_), id=artifact)
        return [artifact_of(row) for row in rows]


def reached(connection: Connection, kind: str, name: str) -> Reach:
    """Return all that a person, an end user, a prompt or a judgment is part of, by one statement."""
    found: dict[str, list[str]] = {}
    wanted = dict.fromkeys((*FORGETTABLE, "judgment"), "") | {kind: name}
    for row in connection.run(_REACHED, **wanted):
        found.setdefault(row["what"], []).append(row["id"])
    return Reach(**{what: tuple(ids) for what, ids in found.items()})


def _source_taint(connection: Connection, source: str) -> float | None:
    row = connection.one("SELECT tainted FROM artifact WHERE id = :id", id=source)
    if row is not None:
        return None if row["tainted"] is None else float(row["tainted"])
    if connection.one("SELECT id FROM prompt WHERE id = :id", id=source) is None:
        raise NotFound(f"no artifact and no prompt {source!r}")
    return None


def require_artifact(connection: Connection, artifact: str) -> Artifact:
    """Return an artifact.

    Raises:
        NotFound: there is none.
    """
    row = connection.one("SELECT * FROM artifact WHERE id = :id", id=artifact)
    if row is None:
        raise NotFound(f"no artifact {artifact!r}")
    return artifact_of(row)


def artifact_of(row: Row) -> Artifact:
    """Return the artifact of a row of its table."""
    return Artifact(
        id=row["id"],
        kind=row["kind"],
        place=json.loads(row["place"]),
        details=json.loads(row["details"]),
        made=row["made"],
        tainted=row["tainted"],
    )
