"""The model of a queue that every transport is checked against.

It keeps one record per task (its open sending) and one per prompt entry (its holder, its deliveries). The
variables and actions are those of docs/queue-protocol.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fairlead.transports.rollouts.base import Claim, Sending

RETURNED = "returned"


def order(entry_id: str) -> tuple[int, int]:
    """Return the sort key of an entry ID by age: `<milliseconds>-<number>` of Redis, or a plain number."""
    head, _, number = entry_id.partition("-")
    return int(head), int(number or 0)


@dataclass
class Open:
    """The open sending of a task."""

    sending: Sending
    entry: str
    failures: int = 0


@dataclass
class Entry:
    """An entry of the prompts stream."""

    task: int
    sending: Sending
    present: bool = True
    delivered: bool = False
    owner: str | None = None
    expired: bool = False
    deliveries: int = 0
    damaged: bool = False


@dataclass
class Model:
    """The expected content of the queue."""

    open: dict[int, Open] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    fence: int = 0

    def entry(self, claim: Claim) -> Entry:
        """Return the entry of a claim; an absent one if the queue went back to before it."""
        return self.entries.get(claim.entry_id, Entry(claim.task.task_id, claim.sending, present=False))

    def is_open(self, claim: Claim) -> bool:
        found = self.open.get(claim.task.task_id)
        return found is not None and (found.sending, found.entry) == (claim.sending, claim.entry_id)

    def acknowledge(self, entry_id: str) -> None:
        if entry_id in self.entries:
            self.entries[entry_id].owner = None

    def finish(self, claim: Claim) -> bool:
        """Finish a claim: the first to finish an open sending counts, with or without the lease."""
        self.acknowledge(claim.entry_id)
        if not self.is_open(claim):
            return False
        del self.open[claim.task.task_id]
        return True

    def fail(self, worker: str, claim: Claim, *, limit: int) -> bool:
        """Count a failure if the worker has the lease; the last one dead-letters the task."""
        if not self.is_open(claim):
            self.acknowledge(claim.entry_id)
            return False
        if self.entry(claim).owner != worker:
            return False
        found = self.open[claim.task.task_id]
        found.failures += 1
        if found.failures >= limit:
            return self.finish(claim)
        self.give_back(self.entry(claim))
        return False

    def release(self, worker: str, claim: Claim) -> None:
        entry = self.entry(claim)
        if entry.owner == worker:
            entry.deliveries = max(0, entry.deliveries - 1)
            self.give_back(entry)

    def give_back(self, entry: Entry) -> None:
        entry.owner, entry.expired = (RETURNED, True) if entry.present else (None, False)

    def renew(self, worker: str, claim: Claim) -> bool:
        """Renew a lease; return whether the worker still has it."""
        entry = self.entry(claim)
        if not self.is_open(claim):
            self.acknowledge(claim.entry_id)
        elif entry.owner == worker and entry.present:
            entry.expired = False
            return True
        elif entry.owner == worker:
            entry.owner = None
        return False

    def claimable(self) -> list[str]:
        """Return entries in the order in which they are claimed: expired leases, then new ones."""
        ordered = sorted(self.entries, key=order)
        expired = [name for name in ordered if self.entries[name].owner and self.entries[name].expired]
        fresh = [name for name in ordered if self.entries[name].present and not self.entries[name].delivered]
        return expired + fresh

    def claim(self, worker: str, count: int) -> list[tuple[int, Sending, int, int, bool]]:
        """Claim entries; return (task, sending, deliveries, failures, damaged) of each."""
        taken: list[tuple[int, Sending, int, int, bool]] = []
        for name in self.claimable():
            if len(taken) == count:
                break
            entry = self.entries[name]
            if not entry.present:
                entry.owner = None
                continue
            entry.delivered, entry.owner, entry.expired = True, worker, False
            entry.deliveries += 1
            found = self.open.get(entry.task)
            if found is None or found.entry != name:
                self.acknowledge(name)
                continue
            taken.append((entry.task, entry.sending, entry.deliveries, found.failures, entry.damaged))
        return taken

    def expire(self, name: str) -> None:
        """Expire a lease; an entry that was deleted from the stream has no owner then."""
        entry = self.entries[name]
        entry.owner, entry.expired = (entry.owner, True) if entry.present else (None, False)

    def present(self) -> set[int]:
        """Return tasks whose open sending can be claimed or is held by a worker."""
        return {
            task
            for task, found in self.open.items()
            if (entry := self.entries[found.entry]).present and (entry.owner or not entry.delivered)
        }

    def lose_prompts(self) -> None:
        for entry in self.entries.values():
            entry.present, entry.owner = False, None

    def lose_consumer(self, worker: str) -> None:
        for entry in self.entries.values():
            if entry.owner == worker:
                entry.owner = None

    def lose_group(self, remaining: set[str]) -> None:
        """Lose the group; the `remaining` entries of the stream are new again."""
        for name, entry in self.entries.items():
            entry.owner = None
            if name in remaining:
                entry.delivered, entry.deliveries = False, 0
