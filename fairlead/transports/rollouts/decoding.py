"""Payloads of the queue → claims and outcomes; what is damaged is named. The same for every transport.

Beneath the transports, which say where a payload lay and of which sending it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fairlead.codec import decode_outcome, decode_task
from fairlead.errors import CorruptData, CorruptOutcome, SchemaTooNew
from fairlead.transports.rollouts.base import Claim, OutcomeEntry, Sending
from fairlead.types import PromptTask, SamplingParams, WeightVersion


@dataclass(frozen=True, slots=True)
class Delivery:
    """A prompt entry in the hands of a worker, not decoded yet."""

    entry_id: str
    """Id in the prompts stream."""
    deliveries: int
    """Times this sending was delivered, this one included."""
    failures: int
    """Explicit failures of this sending so far."""
    task_id: int
    """Of which task the entry is."""
    sending: Sending
    """Which sending of it."""
    payload: bytes
    """The task."""

    def claim(self) -> Claim:
        """The claim.

        Raises:
            CorruptData: if the task cannot be decoded, or is another.
            SchemaTooNew: if a newer fairlead wrote it.
        """
        task = decode_task(self.payload)
        if task.task_id != self.task_id:
            raise CorruptData(
                f"entry {self.entry_id} is of task {self.task_id} and holds task {task.task_id}"
            )
        return Claim(self.entry_id, task, self.sending, self.deliveries, self.failures)

    def stub(self) -> Claim:
        """A claim without its prompt, only to say of which task the entry could not be read."""
        task = PromptTask(self.task_id, (), "", SamplingParams(), WeightVersion(0, 0))
        return Claim(self.entry_id, task, self.sending, self.deliveries, self.failures)


def outcome_entry(entry_id: str, task_id: int, sending: Sending, payload: bytes) -> OutcomeEntry:
    """An outcome as it lay in the queue.

    Raises:
        CorruptOutcome: if it cannot be decoded, or is of another task.
        SchemaTooNew: if a newer fairlead wrote it.
    """
    try:
        outcome = decode_outcome(payload)
    except CorruptData as error:
        raise CorruptOutcome(entry_id, str(error)) from error
    except SchemaTooNew as error:
        raise SchemaTooNew(f"outcome entry {entry_id}: {error}") from error
    if outcome.task.task_id != task_id:
        raise CorruptOutcome(entry_id, f"is of task {task_id} and holds task {outcome.task.task_id}")
    return OutcomeEntry(entry_id, sending, outcome)


def up_to_a_bad_one(entries: Iterable[OutcomeEntry]) -> list[OutcomeEntry]:
    """Entries, decoded one by one, up to the first that cannot be.

    Raises:
        CorruptOutcome, SchemaTooNew: if that is the very first.
    """
    found: list[OutcomeEntry] = []
    try:
        for entry in entries:
            found.append(entry)
    except (CorruptOutcome, SchemaTooNew):
        if not found:
            raise
    return found
