"""The two journals of a trainer: `ledger.jsonl` with its decisions on outcomes, and `events.jsonl`.

The first step of an audit: parses lines to records and reports damaged ones. Does not know what a line means
for its task.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

from fairlead.errors import InvalidInput
from fairlead.types import WeightVersion

COUNTING = ("trained", "dead_letter", "no_signal")
"""Events that settle the task of an outcome; every other event discards the outcome."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that cannot be read."""

    file: str
    """Path below the run's folder."""
    line: int
    """Line number, from 1; 0 for the whole file."""
    what: str
    """Description of the damage."""

    def __str__(self) -> str:
        return f"{self.file}{f':{self.line}' if self.line else ''}: {self.what}"


@dataclass(frozen=True, slots=True)
class OutcomeLine:
    """A line of `ledger.jsonl`: a trainer's decision on an outcome."""

    line: int
    """Line number, from 1."""
    task: int
    """The task."""
    event: str
    """`trained`, `dead_letter`, `no_signal`, or why the outcome was discarded."""
    incarnation: int
    """The trainer that wrote it."""
    update: int
    """Updates done before this outcome was used; training on it produced the weights of `update + 1`."""
    entry: str
    """Entry ID in the rollouts stream."""
    sending: tuple[int, int]
    """The sending that the outcome closed: incarnation and number."""
    worker: str
    """The worker that finished it."""
    deliveries: int
    """How often the sending was delivered, including the last delivery."""
    failures: int
    """Explicit failures before the outcome."""
    time: float
    """Unix time of the line."""
    versions: tuple[WeightVersion, ...]
    """Weights that generated its tokens; empty for a dead letter."""
    samples: int
    """Number of its answers; 0 for a dead letter."""
    reason: str
    """Reason of a dead letter; else empty."""

    @property
    def settles(self) -> bool:
        """Whether this line settles its task, within its lineage."""
        return self.event in COUNTING

    @property
    def produced(self) -> WeightVersion:
        """The weights that were produced by the update that used this outcome."""
        return WeightVersion(self.incarnation, self.update + 1)


@dataclass(frozen=True, slots=True)
class EventLine:
    """A line of `events.jsonl`: what a trainer did to the queue."""

    line: int
    """Line number, from 1."""
    event: str
    """`begun`, `sent`, `checkpoint` or `deleted`."""
    incarnation: int
    """The trainer that wrote it."""
    update: int
    """Updates done."""
    time: float
    """Unix time."""
    tasks: tuple[tuple[int, int], ...] = ()
    """Event `sent`: ranges of tasks, first and last."""
    entries: tuple[str, ...] = ()
    """Event `deleted`: entries of the rollouts stream."""
    settings: Mapping[str, int] | None = None
    """Event `begun`: batch_size, num_samples, max_staleness, updates, and with dynamic
    sampling extra_tasks, of this incarnation."""


def read_outcomes(path: Path, damage: list[Damage]) -> list[OutcomeLine]:
    """Read every valid line of `ledger.jsonl`; the others are added to `damage`."""
    versions: dict[str, WeightVersion] = {}
    found = []
    for number, content in _lines(path, damage):
        try:
            found.append(_outcome(number, content, versions))
        except (KeyError, TypeError, ValueError, InvalidInput) as error:
            damage.append(Damage(path.name, number, f"is not an outcome: {_reason(error)}"))
    return found


def read_events(path: Path, damage: list[Damage]) -> list[EventLine]:
    """Read every valid line of `events.jsonl`; the others are added to `damage`."""
    found = []
    for number, content in _lines(path, damage):
        try:
            found.append(
                EventLine(
                    line=number,
                    event=intern(str(content["event"])),
                    incarnation=int(content["incarnation"]),
                    update=int(content["update"]),
                    time=float(content["time"]),
                    tasks=tuple((int(first), int(last)) for first, last in content.get("tasks", ())),
                    entries=tuple(map(str, content.get("entries", ()))),
                    settings=content.get("terms"),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            damage.append(Damage(path.name, number, f"is not an event: {_reason(error)}"))
    return found


def _outcome(number: int, content: Mapping[str, Any], versions: dict[str, WeightVersion]) -> OutcomeLine:
    incarnation, sending = content["sending"]
    names = content.get("versions", ())
    for name in names:
        if name not in versions:
            versions[name] = WeightVersion.parse(name)
    event = intern(str(content["event"]))
    if event == "trained" and not names:
        raise ValueError("a rollout without weight versions")
    return OutcomeLine(
        line=number,
        task=int(content["task"]),
        event=event,
        incarnation=int(content["incarnation"]),
        update=int(content["update"]),
        entry=str(content["entry"]),
        sending=(int(incarnation), int(sending)),
        worker=intern(str(content["worker"])),
        deliveries=int(content["deliveries"]),
        failures=int(content["failures"]),
        time=float(content["time"]),
        versions=tuple(versions[name] for name in names),
        samples=int(content.get("samples", 1)) if names else 0,
        reason=intern(str(content.get("reason", ""))),
    )


def _lines(path: Path, damage: list[Damage]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the JSON objects of a file with their line numbers; nothing if the file does not exist.

    The file may grow meanwhile.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, raw in enumerate(file, start=1):
            try:
                content = json.loads(raw)
            except ValueError:
                what = "is torn" if raw.endswith(b"\n") else "is torn, or is still being written"
                damage.append(Damage(path.name, number, f"{what} ({len(raw)} bytes)"))
                continue
            if isinstance(content, dict):
                yield number, content
            else:
                damage.append(Damage(path.name, number, "is not a JSON object"))


def _reason(error: Exception) -> str:
    return f"key {error} is missing" if isinstance(error, KeyError) else str(error)
