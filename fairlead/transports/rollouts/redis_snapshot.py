"""A snapshot of a run's queue in Redis, taken without a write by the trainer and by the audit.

Knows the layout of the keys, but no ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.config.infrastructure import QueueSection
from fairlead.transports.rollouts.base import QueuedOutcome, QueuedPrompt, QueueSnapshot, Sending
from fairlead.transports.rollouts.redis_connection import (
    Keys,
    address,
    connect,
    errors_of,
    script,
)


def take_snapshot(section: QueueSection, *, run: str) -> QueueSnapshot:
    """Connect to Redis and return the content of a run's queue.

    Raises:
        ConfigError: if the URL is invalid.
        QueueUnavailable: if Redis does not answer.
        QueueMisconfigured: if Redis rejects the credentials.
        CorruptData: if a key of the run has another type.
    """
    client = connect(section)
    keys = Keys(run)
    try:
        with errors_of(address(section.redis_url)):
            return decode_snapshot(client.register_script(script("snapshot"))(keys=keys.all()))
    finally:
        client.close()


def decode_snapshot(reply: Sequence[Any]) -> QueueSnapshot:
    """Decode the reply of the script `snapshot`."""
    fence, prompts, outcomes, flat, last = reply
    opened = {
        int(task): stored.decode().split(":") for task, stored in zip(flat[::2], flat[1::2], strict=True)
    }
    return QueueSnapshot(
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


def _number(text: bytes, default: int) -> int:
    return int(text) if text.isdigit() else default


def _order(entry: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number)
