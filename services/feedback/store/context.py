"""What every part of the store shares."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from services.feedback.store.base import Database
from services.feedback.store.limits import Limits


@dataclass(frozen=True, slots=True)
class Context:
    """The database, and what does not change while it is open."""

    database: Database
    """Where everything is kept."""
    clock: Callable[[], float]
    """Seconds since 1970."""
    limits: Limits
    """Largest values taken."""
    secret: str
    """Key of the store's digests, made with the store and kept in it."""

    def now(self) -> float:
        """Return the time as the database keeps it."""
        return float(self.clock())


def new_id() -> str:
    """Return 128 random bits in hexadecimal digits."""
    return secrets.token_hex(16)
