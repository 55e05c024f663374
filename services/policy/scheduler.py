"""Who waits for a slot and who gets one: first come first served, bounded in tokens.

Belongs to the engine. Callers put tickets in from any thread; the engine's thread takes samples out.
"""

from __future__ import annotations

from collections import deque
from threading import Lock

from fairlead.errors import Overloaded
from fairlead.types import WeightVersion
from services.policy.sample import Sample
from services.policy.ticket import Ticket

_PATIENCE_STEPS = 4
"""Decoding steps for which free slots may wait for more of them; see benchmarks/generation.py."""
_FREE_FRACTION = 8
"""A prefill waits for this fraction of the slots to be free: it costs as much as a step of all of them."""


class Scheduler:
    """The waiting samples."""

    def __init__(self, *, slots: int, max_queue_tokens: int) -> None:
        self._slots = slots
        self._max_queue_tokens = max_queue_tokens
        self._lock = Lock()
        self._waiting: deque[tuple[Ticket, Sample]] = deque()
        self._tokens = 0
        self._passed_steps = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, ticket: Ticket, *, tokens_per_second: float) -> None:
        """Appends the samples of a ticket.

        Raises:
            Overloaded: if others wait and these would exceed the bound.
        """
        tokens = sum(sample.num_tokens for sample in ticket.samples)
        with self._lock:
            if self._waiting and self._tokens + tokens > self._max_queue_tokens:
                delay = min(30.0, max(0.1, self._tokens / max(tokens_per_second, 1.0)))
                raise Overloaded(
                    f"{self._tokens} tokens wait for a slot, {tokens} more exceed {self._max_queue_tokens}",
                    retry_after_seconds=round(delay, 1),
                )
            self._tokens += tokens
            self._waiting.extend((ticket, sample) for sample in ticket.samples)

    def take(
        self, *, free: int, version: WeightVersion, only: Ticket | None = None
    ) -> list[tuple[Ticket, Sample]]:
        """Samples that get a slot now, of `only` that ticket; fewer than would fit if it pays to wait."""
        if not free or not self._waiting:
            return []
        with self._lock:
            ready = sum(
                ticket.is_served_by(version) and only in (None, ticket) for ticket, _ in self._waiting
            )
            wanted = min(ready, max(1, self._slots // _FREE_FRACTION))
            if not ready:
                return []
            if free < wanted and self._passed_steps < _PATIENCE_STEPS:
                self._passed_steps += 1
                return []
            self._passed_steps = 0
            taken: list[tuple[Ticket, Sample]] = []
            kept: deque[tuple[Ticket, Sample]] = deque()
            for entry in self._waiting:
                wanted_one = only in (None, entry[0]) and entry[0].is_served_by(version)
                fits = len(taken) < free and wanted_one
                (taken if fits else kept).append(entry)
            self._keep(kept)
            return taken

    def drop_closed(self) -> None:
        """Forgets samples that nobody waits for any more."""
        with self._lock:
            if any(ticket.closed for ticket, _ in self._waiting):
                self._keep(deque(entry for entry in self._waiting if not entry[0].closed))

    def tickets(self) -> list[Ticket]:
        """Every ticket with a waiting sample, once."""
        with self._lock:
            return list(dict.fromkeys(ticket for ticket, _ in self._waiting))

    def _keep(self, entries: deque[tuple[Ticket, Sample]]) -> None:
        self._waiting = entries
        self._tokens = sum(sample.num_tokens for _, sample in entries)
