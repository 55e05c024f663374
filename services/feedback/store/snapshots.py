"""Snapshots: lists of judgments, each named by the digest of its list.

What counts are the entries that nothing replaces. The same filter on the same log gives the same list.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from fairlead.errors import Conflict, InvalidInput, NotFound
from services.feedback.store.base import Connection, Row, listed
from services.feedback.store.canonical import canonical, snapshot_digest, turns_of
from services.feedback.store.context import Context
from services.feedback.store.judged import COUNTING, Filter, Judged, Snapshot
from services.feedback.store.limits import check_choices, check_whole
from services.feedback.store.log import entry_of, read_head
from services.feedback.store.projects import require_project
from services.feedback.store.records import COHORTS, JUDGE, PERSON_KINDS, REASONS, TASK_KINDS, Project
from services.feedback.store.tasks import answers_of, tasks_of

_COUNTING = ", ".join(f"'{kind}'" for kind in COUNTING)
_CHUNK = 500
"""Entries that are read at once."""


class Snapshots:
    """The snapshots of the store."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def make(self, wanted: Filter) -> Snapshot:
        """Keep the list of the judgments that a filter selects now.

        Raises:
            InvalidInput: the filter is invalid, no judgment matches it, or it has rankings of judges together
                with those of people, or of a project that does not train on them.
            NotFound: there is no such project.
        """
        _check(wanted)
        with self._context.database.writing() as connection:
            _check_judges(wanted, require_project(connection, wanted.project))
            # Nothing is erased until the list is kept, so that an erasure finds every list it concerns.
            head = read_head(connection, lock=True)
            until = head.seq if wanted.until is None else wanted.until
            if until > head.seq:
                raise InvalidInput("until", got=until, allowed=f"at most {head.seq}, the end of the log")
            fixed = replace(wanted, until=until)
            entries = _selected(connection, fixed)
            if not entries:
                raise InvalidInput("filter", got=_in_words(wanted), allowed="one that a judgment matches")
            digest = snapshot_digest(entries)
            last = connection.one("SELECT id FROM entry WHERE seq = :seq", seq=until)
            details = {"filter": asdict(fixed), "entries": len(entries), "head": last["id"] if last else ""}
            made = connection.one(
                """
                INSERT INTO artifact (id, kind, place, details, made)
                VALUES (:id, 'snapshot', '""', :details, :made)
                ON CONFLICT (id) DO NOTHING RETURNING id
                """,
                id=digest,
                details=canonical(details),
                made=self._context.now(),
            )
            if made is not None:
                connection.run_many(
                    "INSERT INTO member (snapshot, place, entry) VALUES (:snapshot, :place, :entry)",
                    [
                        {"snapshot": digest, "place": place, "entry": entry}
                        for place, entry in enumerate(entries)
                    ],
                )
            return _snapshot(_require(connection, digest))

    def get(self, digest: str) -> Snapshot:
        """Return a snapshot.

        Raises:
            NotFound: there is none of this digest.
        """
        with self._context.database.reading() as connection:
            return _snapshot(_require(connection, digest))

    def all(self) -> list[Snapshot]:
        """Return all snapshots, the oldest first."""
        with self._context.database.reading() as connection:
            rows = connection.run("SELECT * FROM artifact WHERE kind = 'snapshot' ORDER BY made, id")
        return [_snapshot(row) for row in rows]

    def entries(self, digest: str) -> list[str]:
        """Return the ids of the entries of a snapshot, in the order of the log.

        Raises:
            NotFound: there is none of this digest.
        """
        with self._context.database.reading() as connection:
            _require(connection, digest)
            return _members(connection, digest)

    def read(self, digest: str) -> list[Judged]:
        """Return the judgments of a snapshot, in the order of the log.

        Raises:
            Conflict: some of them were erased; a new snapshot is without them.
            NotFound: there is none of this digest.
        """
        with self._context.database.reading() as connection:
            _require(connection, digest)
            entries = _members(connection, digest)
            found = _judged(connection, entries)
        if len(found) < len(entries):
            raise Conflict(
                f"{len(entries) - len(found)} of {len(entries)} judgments of snapshot {digest} were erased; "
                "make a new snapshot, which is without them"
            )
        return found

    def of_entries(self, entries: Sequence[str]) -> list[Judged]:
        """Return what entries say, in the order of the log; those that are erased are absent."""
        with self._context.database.reading() as connection:
            return _judged(connection, entries)

    def judged(self, wanted: Filter) -> list[Judged]:
        """Return the judgments that a filter selects now, for figures; no list of them is kept.

        Raises:
            InvalidInput: the filter is invalid.
            NotFound: there is no such project.
        """
        _check(wanted)
        with self._context.database.reading() as connection:
            require_project(connection, wanted.project)
            until = read_head(connection).seq if wanted.until is None else wanted.until
            return _judged(connection, _selected(connection, replace(wanted, until=until)))


def _selected(connection: Connection, wanted: Filter) -> list[str]:
    lists = {
        "task.kind": wanted.kinds,
        "person.cohort": wanted.cohorts,
        "person.kind": wanted.people,
        "task.why": wanted.whys,
    }
    conditions, values = [], dict[str, object]()
    for column, words in lists.items():
        names, found = listed(column.replace(".", "_"), words)
        conditions.append(f"{column} IN ({names})")
        values.update(found)
    if wanted.without:
        names, found = listed("without", wanted.without)
        conditions.append(f"entry.person NOT IN ({names})")
        values.update(found)
    if wanted.rounds:
        conditions.append(f"task.round IN ({', '.join(str(int(number)) for number in wanted.rounds)})")
    if not wanted.late:
        conditions.append("entry.late = 0")
    rows = connection.run(
        f"""
        SELECT entry.id FROM entry JOIN task ON task.id = entry.task JOIN person ON person.id = entry.person
        JOIN content ON content.entry = entry.id
        WHERE entry.kind IN ({_COUNTING}) AND task.project = :project AND entry.seq > :after
          AND entry.seq <= :until AND NOT EXISTS (
            SELECT 1 FROM entry AS later WHERE later.replaces = entry.id AND later.seq <= :until
          )
          AND {" AND ".join(conditions)}
        ORDER BY entry.seq
        """,
        project=wanted.project,
        after=wanted.after,
        until=wanted.until,
        **values,
    )
    return [row["id"] for row in rows]


def _judged(connection: Connection, entries: Sequence[str]) -> list[Judged]:
    """Return what entries say, without those that are erased."""
    found = []
    for start in range(0, len(entries), _CHUNK):
        names, values = listed("entry", entries[start : start + _CHUNK])
        rows = connection.run(
            f"""
            SELECT entry.*, content.body, person.pseudonym, person.kind AS person_kind, person.cohort,
              prompt.turns, prompt.split_group
            FROM entry JOIN content ON content.entry = entry.id JOIN person ON person.id = entry.person
            JOIN task ON task.id = entry.task JOIN prompt ON prompt.id = task.prompt
            WHERE entry.id IN ({names}) ORDER BY entry.seq
            """,
            **values,
        )
        names, values = listed("task", sorted({row["task"] for row in rows}))
        tasks = (
            tasks_of(connection, connection.run(f"SELECT * FROM task WHERE id IN ({names})", **values))
            if rows
            else []
        )
        answers = answers_of(connection, (answer for task in tasks for answer in task.answers))
        by_id = {task.id: task for task in tasks}
        for row in rows:
            task = by_id[row["task"]]
            found.append(
                Judged(
                    entry=entry_of(row),
                    task=task,
                    turns=turns_of(row["turns"]),
                    split_group=row["split_group"],
                    answers={answer: answers[answer] for answer in task.answers},
                    pseudonym=row["pseudonym"],
                    person_kind=row["person_kind"],
                    cohort=row["cohort"],
                )
            )
    return found


def _members(connection: Connection, digest: str) -> list[str]:
    rows = connection.run("SELECT entry FROM member WHERE snapshot = :id ORDER BY place", id=digest)
    return [row["entry"] for row in rows]


def _require(connection: Connection, digest: str) -> Row:
    row = connection.one("SELECT * FROM artifact WHERE id = :id AND kind = 'snapshot'", id=digest)
    if row is None:
        raise NotFound(f"no snapshot {digest!r}")
    return row


def _snapshot(row: Row) -> Snapshot:
    details = json.loads(row["details"])
    return Snapshot(
        digest=row["id"],
        filter=_filter(details["filter"]),
        head=details["head"],
        entries=details["entries"],
        made=row["made"],
        tainted=row["tainted"],
    )


def _filter(values: dict[str, Any]) -> Filter:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return Filter(**fields)


def _check_judges(wanted: Filter, project: Project) -> None:
    if JUDGE not in wanted.people:
        return
    if set(wanted.people) != {JUDGE}:
        raise InvalidInput(
            "people", got=", ".join(wanted.people), allowed="only judges: their rankings have files apart"
        )
    if project.settings.judges != "train":
        raise InvalidInput("people", got=JUDGE, allowed='others, unless the project has `judges` = "train"')


def _check(wanted: Filter) -> None:
    check_choices("kinds", wanted.kinds, TASK_KINDS)
    check_choices("cohorts", wanted.cohorts, COHORTS)
    check_choices("people", wanted.people, PERSON_KINDS)
    check_choices("whys", wanted.whys, REASONS)
    for index, number in enumerate(wanted.rounds):
        check_whole(f"rounds[{index}]", number, 0, 1_000_000)
    check_whole("after", wanted.after, 0, 2**62)
    if wanted.until is not None:
        check_whole("until", wanted.until, 0, 2**62)


def _in_words(wanted: Filter) -> str:
    """Return what a filter selects, for an error."""
    parts = {"kinds": wanted.kinds, "cohorts": wanted.cohorts, "people": wanted.people}
    chosen = ", ".join(f"{name} {' '.join(values)}" for name, values in parts.items())
    return f"{chosen}, of which there is no judgment yet"
