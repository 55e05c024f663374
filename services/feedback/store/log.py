"""The log: entries that are never changed, each chained to the one before; their contents may be erased.

Followers read after the last number that they know. Numbers have no gaps and follow the order of the commits,
so a follower misses nothing and sees nothing twice.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.errors import CorruptData, InvalidInput, NotFound
from services.feedback.store.base import Connection, Row, listed
from services.feedback.store.canonical import canonical, content_sha256, entry_id, sha256, snapshot_digest
from services.feedback.store.context import Context
from services.feedback.store.judged import Entry

_WITH_CONTENT = (
    "SELECT entry.*, content.nonce, content.body FROM entry LEFT JOIN content ON content.entry = entry.id"
)
_CHUNK = 1_000
"""Entries that `verify` reads at once."""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the log."""

    seq: int
    """Number of the last entry; 0 if there is none."""
    id: str
    """Its id, which names the whole log; empty if there is none."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found in order."""

    head: Head
    """The end of the log."""
    erased: int
    """Entries whose contents are erased, each named by an entry about an erasure."""
    snapshots: int
    """Snapshots whose digests were compared with their entries."""


class Log:
    """The log of the store, for readers."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def head(self) -> Head:
        """Return the end of the log. A copy of it kept elsewhere proves later what came before."""
        with self._context.database.reading() as connection:
            return read_head(connection)

    def entries(self, *, after: int = 0, limit: int = 500, kinds: Sequence[str] = ()) -> list[Entry]:
        """Return entries after a number, in order.

        Args:
            after: number of the last entry that the follower knows.
            limit: most entries to return.
            kinds: kinds of entries; all by default.
        """
        names, values = listed("kind", kinds)
        with self._context.database.reading() as connection:
            rows = connection.run(
                f"{_WITH_CONTENT} WHERE entry.seq > :after"
                + (f" AND entry.kind IN ({names})" if kinds else "")
                + " ORDER BY entry.seq LIMIT :limit",
                after=after,
                limit=max(0, min(limit, self._context.limits.page)),
                **values,
            )
        return [entry_of(row) for row in rows]

    def get(self, entry: str) -> Entry:
        """Return an entry.

        Raises:
            NotFound: there is none.
        """
        with self._context.database.reading() as connection:
            return require_entry(connection, entry)

    def of_task(self, task: str) -> list[Entry]:
        """Return all entries about a task, in order."""
        with self._context.database.reading() as connection:
            rows = connection.run(f"{_WITH_CONTENT} WHERE entry.task = :task ORDER BY entry.seq", task=task)
        return [entry_of(row) for row in rows]

    def of_person(self, person: str, *, after: int = 0) -> list[Entry]:
        """Return entries of a person after a number, in order, at most a page of them."""
        with self._context.database.reading() as connection:
            rows = connection.run(
                f"{_WITH_CONTENT} WHERE entry.person = :person AND entry.seq > :after "
                "ORDER BY entry.seq LIMIT :limit",
                person=person,
                after=after,
                limit=self._context.limits.page,
            )
        return [entry_of(row) for row in rows]

    def verify(self, published: Head | None = None) -> Verified:
        """Check the whole log: every id, the chain, every content, and the digests of the snapshots.

        Args:
            published: an end of the log that was kept elsewhere; it must be part of this log.

        Raises:
            CorruptData: something does not agree; says what.
        """
        with self._context.database.reading() as connection:
            return self.verify_within(connection, published)

    def verify_within(self, connection: Connection, published: Head | None) -> Verified:
        """Check the whole log as a transaction sees it. See `verify`."""
        missing: set[str] = set()
        erased: set[str] = set()
        head = Head(0, "")
        for row in _all(connection):
            self._check(row, head)
            if row["body"] is None:
                missing.add(row["id"])
            elif row["kind"] == "erasure":
                erased.update(json.loads(row["body"])["entries"])
            head = Head(row["seq"], row["id"])
            if published is not None and head.seq == published.seq and head != published:
                raise CorruptData(
                    f"entry {head.seq} of the log is {head.id}, but {published.id} was published"
                )
        if unexplained := missing - erased:
            raise CorruptData(
                f"the content of entry {min(unexplained)} is gone, and no entry says that it was erased"
            )
        if head != read_head(connection):
            raise CorruptData(
                f"the log ends at entry {head.seq}, but {read_head(connection).seq} were written"
            )
        if published is not None and published.seq > head.seq:
            raise CorruptData(f"the log ends at entry {head.seq}, but entry {published.seq} was published")
        return Verified(head, len(missing), _check_snapshots(connection))

    def _check(self, row: Row, before: Head) -> None:
        if row["seq"] != before.seq + 1 or (row["previous"] or "") != before.id:
            raise CorruptData(f"entry {row['seq']} of the log does not follow entry {before.seq}")
        if entry_id(row) != row["id"]:
            raise CorruptData(f"entry {row['seq']} of the log is not what its id says")
        if row["body"] is not None and content_sha256(row["nonce"], row["body"]) != row["content_sha256"]:
            raise CorruptData(f"the content of entry {row['seq']} of the log is not what its digest says")


def append(
    connection: Connection,
    fields: Mapping[str, Any],
    body: Mapping[str, Any],
    *,
    request: str | None = None,
) -> Entry:
    """Append an entry. Other transactions that append wait until this one ends, so this comes last.

    Args:
        connection: within a durable transaction.
        fields: `kind` and `at`; where there are some, `task`, `person`, `late` and `replaces`.
        body: the content.
        request: see `request_key`.
    """
    head = read_head(connection, lock=True)
    nonce, text = secrets.token_hex(16), canonical(dict(body))
    row = {
        **{"task": None, "person": None, "late": 0, "replaces": None},
        **fields,
        "seq": head.seq + 1,
        "previous": head.id or None,
        "request": request,
        "content_sha256": content_sha256(nonce, text),
    }
    row["late"] = int(row["late"])
    row["id"] = entry_id(row)
    connection.run(
        """
        INSERT INTO entry (seq, id, kind, task, person, at, late, previous, request, replaces, content_sha256)
        VALUES (:seq, :id, :kind, :task, :person, :at, :late, :previous, :request, :replaces, :content_sha256)
        """,
        **row,
    )
    connection.run(
        "INSERT INTO content (entry, nonce, body) VALUES (:entry, :nonce, :body)",
        entry=row["id"],
        nonce=nonce,
        body=text,
    )
    connection.run("UPDATE chain SET seq = :seq, id = :id WHERE singleton = 1", seq=row["seq"], id=row["id"])
    return entry_of({**row, "body": text})


def read_head(connection: Connection, *, lock: bool = False) -> Head:
    """Return the end of the log.

    Args:
        connection: within a transaction.
        lock: whether nobody else may append until the transaction ends.

    Raises:
        CorruptData: its row is gone.
    """
    row = connection.one("SELECT seq, id FROM chain WHERE singleton = 1" + (" FOR UPDATE" if lock else ""))
    if row is None:
        raise CorruptData("the end of the log is unknown: the table `chain` is empty")
    return Head(row["seq"], row["id"] or "")


def require_entry(connection: Connection, entry: str) -> Entry:
    """Return an entry.

    Raises:
        NotFound: there is none.
    """
    row = connection.one(f"{_WITH_CONTENT} WHERE entry.id = :id", id=entry)
    if row is None:
        raise NotFound(f"no entry {entry!r} in the log")
    return entry_of(row)


def by_request(connection: Connection, key: str | None) -> Entry | None:
    """Return the entry that a request has written, if it came before."""
    if key is None:
        return None
    row = connection.one(f"{_WITH_CONTENT} WHERE entry.request = :key", key=key)
    return None if row is None else entry_of(row)


def request_key(person: str, request: str | None) -> str | None:
    """Return what the log keeps of a client's idempotency key: nobody meets the key of somebody else.

    Raises:
        InvalidInput: the key is empty or too long.
    """
    if request is None:
        return None
    if not 1 <= len(request) <= 200:
        raise InvalidInput("request", got=request, allowed="1 to 200 characters")
    return sha256(canonical([person, request]))


def entry_of(row: Row) -> Entry:
    """Return the entry of a row with its content."""
    names = ("seq", "id", "kind", "task", "person", "at", "replaces")
    body = None if row["body"] is None else json.loads(row["body"])
    return Entry(**{name: row[name] for name in names}, late=bool(row["late"]), body=body)


def _all(connection: Connection) -> Iterator[Row]:
    after = 0
    while rows := connection.run(
        f"{_WITH_CONTENT} WHERE entry.seq > :after ORDER BY entry.seq LIMIT :limit", after=after, limit=_CHUNK
    ):
        yield from rows
        after = rows[-1]["seq"]


def _check_snapshots(connection: Connection) -> int:
    snapshots = connection.run("SELECT id FROM artifact WHERE kind = 'snapshot'")
    for snapshot in snapshots:
        members = connection.run(
            "SELECT entry FROM member WHERE snapshot = :id ORDER BY place", id=snapshot["id"]
        )
        if snapshot_digest([row["entry"] for row in members]) != snapshot["id"]:
            raise CorruptData(f"snapshot {snapshot['id']} does not have the entries that its digest says")
    return len(snapshots)
