"""What the store needs of a database: transactions, statements, pooled connections and the version of the
schema.

Statements are written once, in the dialect of PostgreSQL with `:name` parameters; an implementation changes
what its database does not understand. Knows no tables but that of the schema's version.
"""

from __future__ import annotations

import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import resources
from typing import Any, Generic, TypeVar

from fairlead.errors import FairleadError, InvalidInput, Overloaded, SchemaTooNew

Row = Mapping[str, Any]
"""A row, by the names of its columns."""
Raw = TypeVar("Raw")

_HALF = re.compile("[\ud800-\udfff]")
LOCK_SECONDS = 30.0
"""Longest wait for a lock or a connection. A transaction takes one fsync, about 10 ms on a slow disk."""


def storable(values: Mapping[str, object]) -> Mapping[str, object]:
    """Return values of parameters that both databases can hold.

    Texts of people and models are stored as JSON in ASCII, which has neither NUL nor halves of a surrogate
    pair. An id that a caller made up may have them, and one database would take what the other refuses.

    Raises:
        InvalidInput: a text cannot be stored, or a number has more than 64 bits.
    """
    for name, value in values.items():
        if isinstance(value, str):
            if "\0" in value or (not value.isascii() and _HALF.search(value)):
                raise InvalidInput(name, got=value, allowed="a text without NUL and unpaired surrogates")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidInput(name, got=value, allowed="a whole number of 64 bits")
    return values


class Connection(ABC):
    """A connection within a transaction."""

    @abstractmethod
    def run(self, statement: str, **values: object) -> list[Row]:
        """Execute a statement and return its rows.

        Raises:
            InvalidInput: a value cannot be stored, see `storable`.
        """

    @abstractmethod
    def run_many(self, statement: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Execute a statement once for each row of values."""

    @abstractmethod
    def script(self, text: str) -> None:
        """Execute several statements without values."""

    def one(self, statement: str, **values: object) -> Row | None:
        """Execute a statement and return its first row, or None."""
        return next(iter(self.run(statement, **values)), None)


class Database(ABC):
    """A database that keeps one store."""

    address: str
    """Where it is, for messages; without a password."""
    dialect: str
    """`sqlite` or `postgres`: the suffix of its own schema files."""

    @abstractmethod
    def writing(self, *, durable: bool = True) -> AbstractContextManager[Connection]:
        """Open a transaction that writes; it commits at the end, or rolls back on an exception.

        Args:
            durable: whether the commit is on the disk when it returns. Without it a loss of power may undo
                the last commits, but not the end of a process.

        Raises:
            Unavailable: a lock or the database could not be had in time.
            OutOfSpace, ReadOnlyDisk, CorruptData: as their names say.
        """

    @abstractmethod
    def reading(self) -> AbstractContextManager[Connection]:
        """Open a transaction that reads one state of the whole database."""

    @abstractmethod
    def lock_schema(self, connection: Connection) -> None:
        """Make other processes wait that create or migrate the schema."""

    @abstractmethod
    def schema(self, text: str) -> str:
        """Return a script of the schema as this database understands it."""

    @abstractmethod
    def scrub(self) -> bool:
        """Remove deleted texts from the files of the database; return whether that was possible now."""

    @abstractmethod
    def close(self) -> None:
        """Close every connection."""


class Pool(Generic[Raw]):
    """Open connections that threads share, each used by one transaction at a time."""

    def __init__(
        self,
        connect: Callable[[], Raw],
        disconnect: Callable[[Raw], None],
        *,
        size: int,
        lost: tuple[type[Exception], ...] = (),
    ) -> None:
        """
        Args:
            connect: opens a connection.
            disconnect: closes one.
            size: most connections at a time.
            lost: what a connection raises at the start of a transaction if the server has ended it.
        """
        self._connect = connect
        self._disconnect = disconnect
        self._size = size
        self._lost = lost
        self._free = threading.Semaphore(size)
        self._idle: list[Raw] = []

    @contextmanager
    def connection(self, start: Callable[[Raw], object]) -> Iterator[Raw]:
        """Lend a connection. Its user rolls back on errors of this project; after others it is closed.

        Args:
            start: begins what it is used for; a connection that was lost meanwhile is replaced.

        Raises:
            Overloaded: every connection stayed in use.
        """
        if not self._free.acquire(timeout=LOCK_SECONDS):
            raise Overloaded(
                f"all {self._size} connections of the feedback store are in use", retry_after_seconds=1.0
            )
        try:
            raw = self._started(start)
            try:
                yield raw
            except FairleadError:
                self._idle.append(raw)
                raise
            except BaseException:
                self._disconnect(raw)
                raise
            self._idle.append(raw)
        finally:
            self._free.release()

    def drain(self) -> None:
        """Close the connections that nobody uses."""
        while (raw := self._popped()) is not None:
            self._disconnect(raw)

    def _started(self, start: Callable[[Raw], object]) -> Raw:
        while (raw := self._popped()) is not None:
            try:
                start(raw)
            except self._lost:
                self._disconnect(raw)
            except BaseException:
                self._disconnect(raw)
                raise
            else:
                return raw
        raw = self._connect()
        try:
            start(raw)
        except BaseException:
            self._disconnect(raw)
            raise
        return raw

    def _popped(self) -> Raw | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None


def migrate(database: Database) -> None:
    """Bring the schema to the newest version.

    Raises:
        SchemaTooNew: a newer program has created or migrated the store.
    """
    scripts = _scripts(database)
    with database.writing() as connection:
        database.lock_schema(connection)
        connection.script(
            "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, applied TEXT NOT NULL)"
        )
        row = connection.one("SELECT COALESCE(MAX(version), 0) AS version FROM schema_version")
        found = int(row["version"]) if row else 0
        if found > len(scripts):
            raise SchemaTooNew(
                f"the feedback store {database.address} has schema version {found}, this program reads up to "
                f"{len(scripts)}; use the version of fairlead-rlhf that wrote it, or a newer one"
            )
        for version, texts in enumerate(scripts[found:], start=found + 1):
            for text in texts:
                connection.script(database.schema(text))
            connection.run(
                "INSERT INTO schema_version (version, applied) VALUES (:version, :applied)",
                version=version,
                applied=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )


def listed(name: str, values: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return a list of parameters for `IN`, and their values.

    Args:
        name: start of the parameters' names.
        values: at least one.
    """
    found = {f"{name}{number}": value for number, value in enumerate(values)}
    return ", ".join(f":{key}" for key in found), found


def _scripts(database: Database) -> list[list[str]]:
    """Return the scripts of each version: the shared one, then the database's own."""
    folder = resources.files(__package__).joinpath("schema")
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".sql"))
    versions = sorted({int(name[:4]) for name in names})
    wanted = re.compile(rf"\d{{4}}(_{database.dialect})?\.sql")
    return [
        [
            folder.joinpath(name).read_text(encoding="utf-8")
            for name in names
            if int(name[:4]) == version and wanted.fullmatch(name)
        ]
        for version in versions
    ]
