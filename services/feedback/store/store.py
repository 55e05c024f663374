"""The store of a feedback service: all that people were asked and said. Knows no HTTP and no models."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from fairlead.errors import CorruptData
from services.feedback.store.accesses import Accesses
from services.feedback.store.artifacts import Artifacts
from services.feedback.store.audits import Audits
from services.feedback.store.base import Database, migrate
from services.feedback.store.canonical import keyed
from services.feedback.store.collected import CollectedPrompts
from services.feedback.store.context import Context
from services.feedback.store.erasures import Erasures
from services.feedback.store.figures import Figures
from services.feedback.store.holds import Holds
from services.feedback.store.judgments import Judgments
from services.feedback.store.leases import Leases
from services.feedback.store.limits import Limits
from services.feedback.store.lineage import Lineage
from services.feedback.store.log import Log
from services.feedback.store.people import People
from services.feedback.store.projects import Projects
from services.feedback.store.prompts import Prompts
from services.feedback.store.rounds import Rounds
from services.feedback.store.snapshots import Snapshots
from services.feedback.store.tasks import Tasks


class Store:
    """The parts of a store over one database; threads may share it."""

    def __init__(
        self, database: Database, *, clock: Callable[[], float] = time.time, limits: Limits | None = None
    ) -> None:
        """
        Args:
            database: where everything is kept; its schema is created or brought to the newest version.
            clock: seconds since 1970.
            limits: largest values taken.

        Raises:
            SchemaTooNew: a newer program has written the store.
        """
        self._database = database
        try:
            migrate(database)
            context = Context(database, clock, limits or Limits(), _secret(database))
        except BaseException:
            database.close()
            raise
        self._secret = context.secret
        self.projects = Projects(context)
        self.people = People(context)
        self.prompts = Prompts(context)
        self.collected = CollectedPrompts(context)
        self.tasks = Tasks(context)
        self.leases = Leases(context)
        self.judgments = Judgments(context)
        self.log = Log(context)
        self.snapshots = Snapshots(context)
        self.artifacts = Artifacts(context)
        self.holds = Holds(context)
        self.rounds = Rounds(context)
        self.lineage = Lineage(context)
        self.erasures = Erasures(context)
        self.accesses = Accesses(context)
        self.figures = Figures(context)
        self.audits = Audits(context)

    def subject(self, user: str) -> str:
        """Return what the store keeps of an end user: a keyed hash, so that it can forget them without
        knowing who they are.
        """
        return keyed(self._secret, "subject", user).hex()

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_store(
    address: str, *, clock: Callable[[], float] = time.time, limits: Limits | None = None
) -> Store:
    """Open a store, and create it if there is none.

    Args:
        address: path of a SQLite file, or `postgresql://user@host/database`.
        clock: seconds since 1970.
        limits: largest values taken.

    Raises:
        ConfigError: the file cannot be created, or the package for PostgreSQL is missing.
        CorruptData: the file is not a database of SQLite.
        SchemaTooNew: a newer program has written the store.
        Unavailable: the server does not answer.
    """
    return Store(_database(address), clock=clock, limits=limits)


def _database(address: str) -> Database:
    if address.startswith(("postgresql://", "postgres://")):
        from services.feedback.store.postgres import PostgresDatabase

        return PostgresDatabase(address)
    from services.feedback.store.sqlite import SqliteDatabase

    return SqliteDatabase(Path(address))


def _secret(database: Database) -> str:
    """Return the secret of the store; the first process makes it."""
    with database.writing() as connection:
        connection.run(
            "INSERT INTO setting (name, value) VALUES ('secret', :value) ON CONFLICT (name) DO NOTHING",
            value=secrets.token_hex(32),
        )
        row = connection.one("SELECT value FROM setting WHERE name = 'secret'")
    if row is None:
        raise CorruptData("the store has no secret")
    return str(row["value"])
