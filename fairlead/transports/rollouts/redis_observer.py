"""A look at a run's queue without a write, by its trainer and by the audit. Knows no ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from fairlead.config.infrastructure import QueueSection
from fairlead.transports.rollouts.base import Sending
from fairlead.transports.rollouts.keys import Keys, script
from fairlead.transports.rollouts.redis_connection import (
    address,
    check_url,
    client_options,
    errors_of,
    no_retry,
)


@dataclass(frozen=True, slots=True)
class QueuedPrompt:
    """An entry of the prompts stream."""

    entry: str
    """Its id."""
    task: int
    """Its task; −1 for an entry that is none of ours."""
    sending: Sending
    """Which sending of the task."""
    is_open: bool
    """Whether that sending can still be finished."""
    worker: str
    """In whose hands it is; `returned` if it was given back, empty if nobody has it."""
    deliveries: int
    """Times it was delivered."""
    idle_seconds: float
    """Since its lease was renewed."""
    is_new: bool
    """Not delivered yet."""


@dataclass(frozen=True, slots=True)
class QueuedOutcome:
    """An entry of the rollouts stream."""

    entry: str
    """Its id."""
    task: int
    """Its task; −1 for an entry that is none of ours."""
    sending: Sending
    """The sending that it closed."""
    size_bytes: int
    """Its payload."""


@dataclass(frozen=True, slots=True)
class QueueContents:
    """What the queue held at one moment."""

    incarnation: int
    """Who holds the fence; 0 for nobody."""
    prompts: tuple[QueuedPrompt, ...]
    """Every entry of the prompts stream, oldest first."""
    outcomes: tuple[QueuedOutcome, ...]
    """Every entry of the rollouts stream, oldest first."""
    failures: Mapping[int, int]
    """Task with an open sending → its explicit failures."""

    def under_way(self) -> set[int]:
        """Tasks whose open sending waits for a worker or is in its hands."""
        return {prompt.task for prompt in self.prompts if prompt.is_open and (prompt.worker or prompt.is_new)}

    def present(self) -> set[int]:
        """Tasks that are under way, or have an outcome here."""
        return self.under_way() | {outcome.task for outcome in self.outcomes}


def look(section: QueueSection, *, run: str) -> QueueContents:
    """What the queue of a run holds now.

    Raises:
        ConfigError: for a bad URL.
        QueueUnavailable: if it does not answer.
        QueueMisconfigured: if it refuses us.
        CorruptData: if something else lies under the run's keys.
    """
    url, keys = check_url(section), Keys(run)
    client = redis.Redis.from_url(url, retry=no_retry(), **client_options(section))
    try:
        with errors_of(address(url)):
            return contents(client.register_script(script("look"))(keys=keys.all()))
    finally:
        client.close()


def contents(answer: Sequence[Any]) -> QueueContents:
    """What the script `look` answered."""
    fence, prompts, outcomes, flat, last = answer
    opened = {
        int(task): stored.decode().split(":") for task, stored in zip(flat[::2], flat[1::2], strict=True)
    }
    return QueueContents(
        incarnation=int(fence.partition(b":")[0] or 0),
        prompts=tuple(_prompt(raw, opened, _order(last)) for raw in prompts),
        outcomes=tuple(
            QueuedOutcome(raw[0].decode(), _number(raw[1], -1), _sending(raw), raw[4]) for raw in outcomes
        ),
        failures={task: int(parts[2]) for task, parts in opened.items()},
    )


def _prompt(raw: Sequence[Any], opened: Mapping[int, Sequence[str]], last: tuple[int, int]) -> QueuedPrompt:
    entry, task, sending = raw[0].decode(), _number(raw[1], -1), _sending(raw)
    stored = opened.get(task, ("", "", "", ""))
    return QueuedPrompt(
        entry=entry,
        task=task,
        sending=sending,
        is_open=tuple(stored[:2]) == (str(sending.incarnation), str(sending.number)) and stored[3] == entry,
        worker=raw[4].decode(),
        deliveries=raw[5],
        idle_seconds=raw[6] / 1000,
        is_new=_order(raw[0]) > last,
    )


def _sending(raw: Sequence[Any]) -> Sending:
    return Sending(_number(raw[2], 0), _number(raw[3], 0))


def _number(text: bytes, otherwise: int) -> int:
    return int(text) if text.isdigit() else otherwise


def _order(entry: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number)
