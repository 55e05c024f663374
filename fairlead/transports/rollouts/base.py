"""The queue between trainer and rollout workers, as each side sees it.

The trainer's side is synchronous (one thread reads and dispatches), the worker's asynchronous (many tasks in
flight). The rules are those of docs/queue-protocol.md; nothing here knows Redis. Implementations: `redis`
(every real run) and `memory` (unit tests). Both pass tests/contract/test_rollout_transports.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fairlead.types import DeadLetter, Outcome, PromptTask, Rollout

UNDECODABLE = "undecodable_task"
"""Reason of the dead letter that says: the prompt entry is damaged. The task itself may be sent again."""


@dataclass(frozen=True, slots=True, order=True)
class Sending:
    """One sending of a task. At most one sending of a task is open; only an open one can be finished."""

    incarnation: int
    """The trainer that sent it."""
    number: int
    """Counts the sendings of this task, from 1."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A task in the hands of a worker, until its lease ends."""

    entry_id: str
    """Id in the prompts stream."""
    task: PromptTask
    """The task."""
    sending: Sending
    """Which sending of it."""
    deliveries: int
    """Times this sending was delivered, this one included."""
    failures: int
    """Explicit failures of this sending so far."""


@dataclass(frozen=True, slots=True)
class OutcomeEntry:
    """An outcome as it lies in the queue."""

    entry_id: str
    """Id in the rollouts stream."""
    sending: Sending
    """The sending that it closed."""
    outcome: Outcome
    """What came of the task."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What the queue holds, at one moment."""

    prompts: frozenset[int]
    """Tasks whose open sending waits for a worker or is in its hands."""
    outcomes: Mapping[str, int]
    """Entry id → task id of every outcome."""
    outcome_bytes: int
    """Payload of all outcomes."""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Sizes, for metrics."""

    waiting: int
    """Prompts not delivered yet."""
    in_flight: int
    """Prompts delivered and not acknowledged."""
    outcomes: int
    """Entries in the rollouts stream."""
    memory_bytes: int
    """Memory that the queue's server uses."""
    outcome_bytes: int = 0
    """Payload of the outcomes, by the mean of those that were read."""
    limit_bytes: int = 0
    """Memory that the server may use; 0 if nothing limits it."""


class WorkerQueue(Protocol):
    """The worker's side. Every method raises QueueUnavailable when the queue cannot be reached."""

    async def claim(self, *, count: int, block_seconds: float) -> Sequence[Claim]:
        """Up to `count` tasks: first those whose lease ran out elsewhere, then new ones.

        Waits up to `block_seconds` for the first. An entry that cannot be decoded is dead-lettered with the
        reason `UNDECODABLE`, not returned. An entry whose sending is closed is acknowledged, not returned. A
        sending delivered more often than the limit is dead-lettered with the reason `too_many_deliveries`.
        """
        ...

    async def renew(self, claims: Iterable[Claim]) -> frozenset[str]:
        """Prolongs the leases that this worker still holds; returns the entry ids that it has lost."""
        ...

    async def finish(self, claim: Claim, result: Rollout | DeadLetter) -> bool:
        """Closes the sending, appends the outcome and acknowledges the prompt, in one step.

        Returns False, and changes nothing, if the sending is closed already.
        """
        ...

    async def fail(self, claim: Claim, letter: DeadLetter) -> bool:
        """Counts an explicit failure and gives the task back; at the limit dead-letters it with `letter`.

        Returns True if the task was dead-lettered.
        """
        ...

    async def release(self, claims: Iterable[Claim]) -> None:
        """Gives tasks back so that a peer may claim them at once. Nothing is counted against them."""
        ...

    async def close(self) -> None:
        """Leaves the group if nothing is pending for this worker, and disconnects."""
        ...


class TrainerQueue(Protocol):
    """The trainer's side. Writes raise Fenced once a newer incarnation holds the fence."""

    def known_incarnation(self) -> int:
        """The incarnation that holds the fence, 0 if none ever did."""
        ...

    def take_fence(self, incarnation: int) -> None:
        """Fences off every lower incarnation.

        Raises:
            Fenced: if an equal or higher incarnation holds the fence.
        """
        ...

    def dispatch(self, tasks: Sequence[PromptTask]) -> None:
        """Opens a new sending of each task, closing an older open one."""
        ...

    def read(self, *, after: str, count: int, block_seconds: float) -> Sequence[OutcomeEntry]:
        """Outcomes behind the entry id `after` ("0" reads from the head), oldest first; no side effect.

        Waits up to `block_seconds` for the first. Entries before a bad one are returned; the call that begins
        at the bad one raises.

        Raises:
            CorruptOutcome: for an entry that cannot be decoded, with its id.
            SchemaTooNew: for an entry that a newer fairlead wrote.
        """
        ...

    def delete(self, entry_ids: Iterable[str]) -> None:
        """Deletes outcomes whose tasks are settled in the ledger."""
        ...

    def survey(self) -> Survey:
        """What the queue holds, at one moment; for reconciliation with the ledger."""
        ...

    def stats(self) -> QueueStats:
        """Sizes, for metrics."""
        ...

    def close(self) -> None:
        """Disconnects."""
        ...
