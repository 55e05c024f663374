"""One request at a time that nothing else runs beside: should the replica die, it is known under which.

Belongs to who lets requests in: the policy's engine, which holds its lock around every call, or a `Gate`.
Knows no model.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from fairlead.errors import Overloaded

_RESERVED_SECONDS = 2.0
"""Who was refused finds the place empty when it comes back within that time."""
_RETRY_SECONDS = 0.2
_SETTLE_SECONDS = 0.1
"""Before it begins: who was refused at the same moment must hear so before the replica may be gone."""


class Ticket(Protocol):
    """A request."""

    closed: bool
    """Answered, failed, or no longer wanted."""


_Ticket = TypeVar("_Ticket", bound=Ticket)


class Solitude(Generic[_Ticket]):
    """Who is alone, or will be."""

    def __init__(self) -> None:
        self._ticket: _Ticket | None = None
        self._reserved_until = 0.0

    @property
    def ticket(self) -> _Ticket | None:
        """The request that runs alone or is about to."""
        if self._ticket is not None and self._ticket.closed:
            self._ticket = None
        return self._ticket

    def claim(self, ticket: _Ticket, *, busy: bool, served: bool) -> None:
        """Lets a request be the next, or has it come back when the others have ended.

        Args:
            ticket: the request.
            busy: whether anything runs.
            served: whether the weights in use are new enough for it.

        Raises:
            Overloaded: if it must come back.
        """
        if busy or not served or self.ticket is not None:
            if served and self.ticket is None:
                self._reserved_until = time.monotonic() + _RESERVED_SECONDS
            raise Overloaded(
                "a request that is to be alone waits for the end of the others",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self._ticket, self._reserved_until = ticket, time.monotonic() + _SETTLE_SECONDS

    def lets_in(self, running: Iterable[_Ticket]) -> bool:
        """Whether anybody may join those that run: nobody but the one, and nobody while a place is kept."""
        if self.held_seconds():
            return False
        return self.ticket is None or all(ticket is self.ticket for ticket in running)

    def held_seconds(self) -> float:
        """How long nobody may join yet, because a place is kept or its owner is about to begin; 0: now."""
        return max(0.0, self._reserved_until - time.monotonic())
