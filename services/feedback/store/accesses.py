"""Who has looked at what, for auditors."""

from __future__ import annotations

from dataclasses import dataclass

from services.feedback.store.context import Context
from services.feedback.store.limits import check_identifier, check_word


@dataclass(frozen=True, slots=True)
class Access:
    """One look at texts or figures."""

    seq: int
    """Larger is later."""
    at: float
    """When."""
    who: str
    """A person's id, or the name of an API key."""
    what: str
    """Such as `export` or `read`."""
    object: str
    """Id of what was looked at; empty once that is erased."""


class Accesses:
    """The list of accesses."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def add(self, who: str, what: str, object_: str = "") -> None:
        """Note an access.

        Raises:
            InvalidInput: a field is invalid.
        """
        check_identifier("who", who)
        check_word("what", what)
        check_identifier("object", object_, empty=True)
        with self._context.database.writing(durable=False) as connection:
            connection.run(
                "INSERT INTO access (at, who, what, object) VALUES (:at, :who, :what, :object)",
                at=self._context.now(),
                who=who,
                what=what,
                object=object_,
            )

    def page(self, *, after: int = 0) -> list[Access]:
        """Return accesses after a number, in order, at most a page of them."""
        with self._context.database.reading() as connection:
            rows = connection.run(
                "SELECT * FROM access WHERE seq > :after ORDER BY seq LIMIT :limit",
                after=after,
                limit=self._context.limits.page,
            )
        return [Access(**{name: row[name] for name in Access.__dataclass_fields__}) for row in rows]
