"""The store in one SQLite file, for one host: a write-ahead log, one writer, many readers.

WAL needs shared memory, so the file cannot be on a network file system.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from fairlead.errors import ConfigError, CorruptData, FairleadError, OutOfSpace, ReadOnlyDisk, Unavailable
from services.feedback.store.base import LOCK_SECONDS, Connection, Database, Pool, Row, storable

_POOL = 64
"""Connections of one process; a server has no more threads."""
_LOCK_CLAUSE = re.compile(r"\s+FOR UPDATE(?: OF \w+)?(?: SKIP LOCKED)?", re.IGNORECASE)
_ERRORS: dict[int, type[FairleadError]] = {
    sqlite3.SQLITE_BUSY: Unavailable,
    sqlite3.SQLITE_LOCKED: Unavailable,
    sqlite3.SQLITE_FULL: OutOfSpace,
    sqlite3.SQLITE_READONLY: ReadOnlyDisk,
    sqlite3.SQLITE_CANTOPEN: ReadOnlyDisk,
    sqlite3.SQLITE_CORRUPT: CorruptData,
    sqlite3.SQLITE_NOTADB: CorruptData,
}


class SqliteConnection(Connection):
    """A connection to the file."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw

    def run(self, statement: str, **values: object) -> list[Row]:
        """See base."""
        cursor = self._raw.execute(_without_locks(statement), storable(values))
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def run_many(self, statement: str, rows: Iterable[Mapping[str, object]]) -> None:
        """See base."""
        self._raw.executemany(_without_locks(statement), map(storable, rows))

    def script(self, text: str) -> None:
        """See base. `executescript` would commit first, and the body of a trigger has semicolons."""
        statement = ""
        for line in text.splitlines(keepends=True):
            if not line.strip() or line.lstrip().startswith("--"):
                continue
            statement += line
            if sqlite3.complete_statement(statement):
                self._raw.execute(statement)
                statement = ""
        if statement.strip():
            self._raw.execute(statement)


class SqliteDatabase(Database):
    """A SQLite file. Threads of this process take turns to write; other processes wait for its lock."""

    dialect = "sqlite"
    checkpoint_milliseconds = 5_000
    """How long a checkpoint waits for readers."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: the file; it is created, readable by its owner only, with its folder.

        Raises:
            ConfigError: the file cannot be created.
            CorruptData: the file is not a SQLite database.
        """
        self.address = str(path)
        self._path = path
        self._pool = Pool(self._connect, sqlite3.Connection.close, size=_POOL)
        self._writer = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise ConfigError(
                "feedback.store", got=f"{path} ({error.strerror})", allowed="a file that can be written"
            ) from error

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Connection]:
        """See base."""
        if not self._writer.acquire(timeout=LOCK_SECONDS):
            raise Unavailable(f"the feedback store {self.address} was locked for {LOCK_SECONDS:g} s")
        try:
            synchronous = f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}"
            with self._transaction(synchronous, "BEGIN IMMEDIATE") as connection:
                yield connection
        finally:
            self._writer.release()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """See base."""
        with self._transaction("BEGIN") as connection:
            yield connection

    def lock_schema(self, connection: Connection) -> None:
        """See base: the transaction that writes is the only one."""

    def schema(self, text: str) -> str:
        """See base."""
        return text.replace(" IDENTITY ", " INTEGER ")

    def scrub(self) -> bool:
        """See base. `VACUUM` writes pages without free space, the checkpoint empties the log."""
        wait = f"PRAGMA busy_timeout = {self.checkpoint_milliseconds}"
        with self._writer, self._translated(), self._pool.connection(lambda raw: raw.execute(wait)) as raw:
            try:
                raw.execute("VACUUM")
                busy, _, _ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                busy = 1
            finally:
                raw.execute(f"PRAGMA busy_timeout = {int(LOCK_SECONDS * 1000)}")
            return bool(busy == 0)

    def close(self) -> None:
        """See base."""
        self._pool.drain()

    def _connect(self) -> sqlite3.Connection:
        raw = sqlite3.connect(self._path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            raw.execute("PRAGMA journal_mode = WAL")
            raw.execute("PRAGMA foreign_keys = ON")
            raw.execute("PRAGMA secure_delete = ON")
            # Without it, INSERT OR REPLACE would delete an entry and not ask the trigger.
            raw.execute("PRAGMA recursive_triggers = ON")
        except BaseException:
            raw.close()
            raise
        return raw

    @contextmanager
    def _transaction(self, *begin: str) -> Iterator[Connection]:
        def start(raw: sqlite3.Connection) -> None:
            for statement in begin:
                raw.execute(statement)

        with self._translated(), self._pool.connection(start) as raw:
            try:
                yield SqliteConnection(raw)
            except FairleadError:
                raw.execute("ROLLBACK")
                raise
            raw.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise errors of the file as those of this project. Others are bugs, and stay as they are."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            # The lower eight bits are the code, the others say more.
            kind = _ERRORS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
            if kind is None:
                raise
            raise kind(f"the feedback store {self.address}: {error}") from error


@lru_cache(maxsize=512)
def _without_locks(statement: str) -> str:
    """Return a statement without row locks: the transaction that writes holds the whole file."""
    return _LOCK_CLAUSE.sub("", statement)
