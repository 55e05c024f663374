"""Lineage both ways: from a person, prompt or judgment to models, and from a model back to judgments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.errors import NotFound
from services.feedback.store.artifacts import (
    FORGETTABLE,
    Artifact,
    Reach,
    artifact_of,
    reached,
    require_artifact,
)
from services.feedback.store.base import Connection, listed
from services.feedback.store.canonical import turns_of
from services.feedback.store.context import Context
from services.feedback.store.limits import check_choice

STARTS = (*FORGETTABLE, "judgment")
"""Where lineage can begin: what can be forgotten, and a judgment with its revisions."""
_CHUNK = 500
"""Ids of one statement."""
_EXISTS = {
    "person": "SELECT id FROM person WHERE id = :id",
    "subject": "SELECT id FROM prompt WHERE subject = :id LIMIT 1",
    "prompt": "SELECT id FROM prompt WHERE id = :id",
    "judgment": "SELECT id FROM entry WHERE id = :id AND kind <> 'erasure'",
}
_SOURCES = """
    WITH RECURSIVE found (id) AS (
      SELECT CAST(:id AS TEXT)
      UNION SELECT made_from.source FROM made_from JOIN found ON made_from.artifact = found.id
    )
    """
_MEMBERS = f"""
    {_SOURCES}, members (entry) AS (
      SELECT DISTINCT member.entry FROM member JOIN found ON member.snapshot = found.id
    )
    """


@dataclass(frozen=True, slots=True)
class Made:
    """An artifact within a lineage."""

    artifact: Artifact
    """The artifact."""
    made_from: tuple[str, ...]
    """Ids of artifacts, and of prompts, that it was made from directly."""
    judgments: int
    """Judgments of a snapshot; 0 for a model."""
    reached: int
    """How many of them belong to what the lineage begins with."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a person has said of which a model was made."""

    person: str
    """Id of the person."""
    handle: str | None
    """Their name; None once forgotten."""
    judgments: int
    """Their judgments in snapshots of the model."""
    erased: int
    """How many of these are erased."""


class Lineage:
    """What was made of judgments, and of which judgments something was made."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def forward(self, kind: str, name: str) -> tuple[Reach, list[Made]]:
        """Return all that a person, an end user, a prompt or a judgment is part of, and the artifacts among
        it, each after those that it was made from.

        Args:
            kind: one of STARTS.
            name: id of the person, keyed hash of the end user, or id of the prompt or of an entry.

        Raises:
            NotFound: there is none.
        """
        check_choice("kind", kind, STARTS)
        with self._context.database.reading() as connection:
            if connection.one(_EXISTS[kind], id=name) is None:
                raise NotFound(f"no {'prompt of the end user' if kind == 'subject' else kind} {name!r}")
            found = reached(connection, kind, name)
            return found, _made(connection, found.artifacts, found.entries)

    def backward(self, artifact: str) -> tuple[list[Made], list[Contribution]]:
        """Return an artifact after all that it was made from, and the people of whose judgments it was made,
        those with the most first.

        Raises:
            NotFound: there is no such artifact.
        """
        with self._context.database.reading() as connection:
            require_artifact(connection, artifact)
            rows = connection.run(f"{_SOURCES} SELECT id FROM found", id=artifact)
            made = _made(connection, [row["id"] for row in rows], ())
            people = connection.run(
                f"""
                {_MEMBERS}
                SELECT entry.person, person.handle, COUNT(*) AS judgments,
                  SUM(CASE WHEN content.entry IS NULL THEN 1 ELSE 0 END) AS erased
                FROM members JOIN entry ON entry.id = members.entry JOIN person ON person.id = entry.person
                LEFT JOIN content ON content.entry = entry.id
                GROUP BY entry.person, person.handle ORDER BY judgments DESC, entry.person
                """,
                id=artifact,
            )
        return made, [Contribution(**row) for row in people]

    def judgments(self, artifact: str) -> list[str]:
        """Return the entries of all snapshots that an artifact was made from, in the order of the log.

        Raises:
            NotFound: there is no such artifact.
        """
        with self._context.database.reading() as connection:
            require_artifact(connection, artifact)
            rows = connection.run(
                f"""
                {_MEMBERS} SELECT entry.id FROM members JOIN entry ON entry.id = members.entry
                ORDER BY entry.seq
                """,
                id=artifact,
            )
        return [row["id"] for row in rows]

    def texts(self, found: Reach) -> list[str]:
        """Return the texts that forgetting deletes: prompts, answers, what was written, and notes."""
        texts: dict[str, None] = {}
        with self._context.database.reading() as connection:
            for names, values in _chunks(found.prompts):
                for row in connection.run(f"SELECT turns FROM prompt WHERE id IN ({names})", **values):
                    texts.update((turn.content, None) for turn in turns_of(row["turns"]))
            for names, values in _chunks(found.answers):
                for row in connection.run(f"SELECT text FROM answer WHERE id IN ({names})", **values):
                    texts[json.loads(row["text"])] = None
            for names, values in _chunks(found.entries):
                for row in connection.run(f"SELECT body FROM content WHERE entry IN ({names})", **values):
                    body = json.loads(row["body"])
                    texts.update((body[name], None) for name in ("text", "note") if name in body)
        return [text for text in texts if text.strip()]


def _made(connection: Connection, ids: Sequence[str], entries: Sequence[str]) -> list[Made]:
    """Return artifacts with what they were made from, sources first; other ids are left out."""
    artifacts: dict[str, Artifact] = {}
    sources: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    own: dict[str, int] = {}
    for names, values in _chunks(ids):
        for row in connection.run(f"SELECT * FROM artifact WHERE id IN ({names})", **values):
            artifacts[row["id"]] = artifact_of(row)
        for row in connection.run(
            f"SELECT artifact, source FROM made_from WHERE artifact IN ({names}) ORDER BY source", **values
        ):
            sources.setdefault(row["artifact"], []).append(row["source"])
        for row in connection.run(
            f"SELECT snapshot, COUNT(*) AS number FROM member WHERE snapshot IN ({names}) GROUP BY snapshot",
            **values,
        ):
            sizes[row["snapshot"]] = row["number"]
    for names, values in _chunks(entries):
        for row in connection.run(
            f"SELECT snapshot, COUNT(*) AS number FROM member WHERE entry IN ({names}) GROUP BY snapshot",
            **values,
        ):
            own[row["snapshot"]] = own.get(row["snapshot"], 0) + row["number"]
    return [
        Made(artifacts[one], tuple(sources.get(one, ())), sizes.get(one, 0), own.get(one, 0))
        for one in _in_order(artifacts, sources)
    ]


def _in_order(artifacts: dict[str, Artifact], sources: dict[str, list[str]]) -> list[str]:
    """Return ids so that each comes after its sources, otherwise the oldest first."""
    left = sorted(artifacts, key=lambda one: (artifacts[one].made, one))
    found: dict[str, None] = {}
    while left:
        ready = [
            one
            for one in left
            if all(source in found for source in sources.get(one, ()) if source in artifacts)
        ]
        # Nothing is made from itself: an artifact is registered after its sources.
        found.update(dict.fromkeys(ready))
        left = [one for one in left if one not in found]
    return list(found)


def _chunks(ids: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    return [listed("id", ids[start : start + _CHUNK]) for start in range(0, len(ids), _CHUNK)]
