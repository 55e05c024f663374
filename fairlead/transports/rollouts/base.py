"""The queue between trainer and rollout workers: the interface of each side and the data that it returns.

The trainer's side is synchronous (one thread reads and dispatches), the worker's side is asynchronous (many
tasks in flight). The rules are in docs/queue-protocol.md. Knows nothing about Redis; the implementations are
in `redis_worker.py` and `redis_trainer.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fairlead.types import DeadLetter, Outcome, PromptTask, TaskResult

UNDECODABLE = "undecodable_task"
"""Reason of a dead letter for a damaged prompt entry. The trainer may send the task itself again."""


@dataclass(frozen=True, slots=True, order=True)
class Sending:
    """One sending of a task. A task has at most one open sending; only an open sending can be finished."""

    incarnation: int
    """Incarnation of the trainer that sent it."""
    number: int
    """Number of this sending of the task, from 1."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that a worker holds until its lease expires."""

    entry_id: str
    """ID in the prompts stream."""
    task: PromptTask
    """The task."""
    sending: Sending
    """The sending of the task."""
    deliveries: int
    """How often this sending was delivered, including this delivery."""
    failures: int
    """Explicit failures of this sending so far."""


@dataclass(frozen=True, slots=True)
class OutcomeEntry:
    """An outcome as stored in the queue."""

    entry_id: str
    """ID in the rollouts stream."""
    sending: Sending
    """The sending that the outcome closed."""
    outcome: Outcome
    """The rollouts or the dead letter, with their task."""


@dataclass(frozen=True, slots=True)
class QueuedPrompt:
    """An entry of the prompts stream."""

    entry: str
    """Entry ID."""
    task: int
    """Task ID; −1 if the entry was not written by Fairlead."""
    sending: Sending
    """The sending of the task."""
    is_open: bool
    """Whether that sending can still be finished."""
    worker: str
    """Consumer that holds the entry; `returned` if it was given back, empty if it was never delivered."""
    deliveries: int
    """How often the entry was delivered."""
    idle_seconds: float
    """Time since its lease was last renewed."""
    is_new: bool
    """Whether the entry was not delivered yet."""


@dataclass(frozen=True, slots=True)
class QueuedOutcome:
    """An entry of the rollouts stream."""

    entry: str
    """Entry ID."""
    task: int
    """Task ID; −1 if the entry was not written by Fairlead."""
    sending: Sending
    """The sending that the outcome closed."""
    size_bytes: int
    """Size of the payload."""


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """The content of the queue at one moment."""

    incarnation: int
    """Incarnation that holds the fence; 0 if none does."""
    prompts: tuple[QueuedPrompt, ...]
    """Every entry of the prompts stream, oldest first."""
    outcomes: tuple[QueuedOutcome, ...]
    """Every entry of the rollouts stream, oldest first."""
    failures: Mapping[int, int]
    """Task with an open sending → explicit failures of that sending."""

    @property
    def outcome_bytes(self) -> int:
        """Total payload of the outcomes."""
        return sum(outcome.size_bytes for outcome in self.outcomes)

    def tasks_under_way(self) -> set[int]:
        """Return the tasks whose open sending waits for a worker or is held by one."""
        return {prompt.task for prompt in self.prompts if prompt.is_open and (prompt.worker or prompt.is_new)}

    def outcome_tasks(self) -> dict[str, int]:
        """Return the task ID of each outcome, by entry ID."""
        return {outcome.entry: outcome.task for outcome in self.outcomes}

    def tasks_present(self) -> set[int]:
        """Return the tasks that are under way or have an outcome in the queue."""
        return self.tasks_under_way() | {outcome.task for outcome in self.outcomes}


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Sizes of the queue, for metrics."""

    waiting: int
    """Prompts that were not delivered yet."""
    in_flight: int
    """Prompts that were delivered and not acknowledged."""
    outcomes: int
    """Entries in the rollouts stream."""
    memory_bytes: int
    """Memory in use by the queue's server."""
    outcome_bytes: int = 0
    """Payload of the outcomes, estimated from the mean size of those that were read."""
    limit_bytes: int = 0
    """Memory limit of the server; 0 if it has none."""


class WorkerQueue(Protocol):
    """The worker's side. Every method raises QueueUnavailable if the queue cannot be reached."""

    async def claim(self, *, count: int, block_seconds: float) -> Sequence[Claim]:
        """Claim up to `count` tasks: first those whose lease expired at another worker, then new ones.

        Waits up to `block_seconds` for the first task. An entry that cannot be decoded is dead-lettered with
        the reason `UNDECODABLE` and not returned. An entry whose sending is closed is acknowledged and not
        returned. A sending that was delivered more often than the limit is dead-lettered with the reason
        `too_many_deliveries`.
        """
        ...

    async def renew(self, claims: Iterable[Claim]) -> frozenset[str]:
        """Renew the leases that this worker still holds; return the entry IDs of the claims that it lost."""
        ...

    async def finish(self, claim: Claim, result: TaskResult) -> bool:
        """Close the sending, append the outcome and acknowledge the prompt, in one atomic step.

        Returns:
            False if the sending was closed before; nothing is changed then.
        """
        ...

    async def fail(self, claim: Claim, letter: DeadLetter) -> bool:
        """Count an explicit failure and give the task back; at the limit, dead-letter it with `letter`.

        Returns:
            True if the task was dead-lettered.
        """
        ...

    async def release(self, claims: Iterable[Claim]) -> None:
        """Give tasks back so that another worker can claim them at once, without counting a failure."""
        ...

    async def close(self) -> None:
        """Leave the consumer group if nothing is pending for this worker, and disconnect."""
        ...


class TrainerQueue(Protocol):
    """The trainer's side. Writes raise Fenced once a newer incarnation holds the fence."""

    def known_incarnation(self) -> int:
        """Return the incarnation that holds the fence, 0 if none ever did."""
        ...

    def take_fence(self, incarnation: int) -> None:
        """Take the fence, which blocks the writes of every lower incarnation.

        Raises:
            Fenced: if an equal or higher incarnation holds the fence.
        """
        ...

    def dispatch(self, tasks: Sequence[PromptTask]) -> Sequence[Sending]:
        """Open a new sending of each task, which closes an older open sending of it; return the sendings."""
        ...

    def read(self, *, after: str, count: int, block_seconds: float) -> Sequence[OutcomeEntry]:
        """Return outcomes after the entry ID `after` ("0": from the first one), oldest first.

        Has no side effects. Waits up to `block_seconds` for the first outcome. Entries before a
        corrupt one are returned; the call that starts at the corrupt one raises.

        Raises:
            CorruptOutcome: for an entry that cannot be decoded, with its ID.
            SchemaTooNew: for an entry that was written by a newer Fairlead.
        """
        ...

    def delete(self, entry_ids: Iterable[str]) -> None:
        """Delete outcomes whose tasks are settled in the ledger."""
        ...

    def snapshot(self) -> QueueSnapshot:
        """Return the content of the queue at one moment, to reconcile it with the ledger."""
        ...

    def stats(self) -> QueueStats:
        """Return the sizes of the queue, for metrics."""
        ...

    def close(self) -> None:
        """Disconnect."""
        ...
