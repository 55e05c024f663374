"""The two files in which a trainer writes down what it does: outcomes (`ledger.jsonl`) and `events.jsonl`.

The first step of an audit: lines become records, and what is damaged is named. Knows nothing of what a line
means for its task.
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

COUNTING = ("trained", "dead_letter")
"""Events of outcomes that settle their task; every other event discards the outcome."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that cannot be read."""

    file: str
    """Its path below the run's folder."""
    line: int
    """Its line, from 1; 0 for a whole file."""
    what: str
    """What is wrong, in words."""

    def __str__(self) -> str:
        return f"{self.file}{f':{self.line}' if self.line else ''}: {self.what}"


@dataclass(frozen=True, slots=True)
class OutcomeLine:
    """A line of `ledger.jsonl`: what a trainer made of an outcome."""

    line: int
    """Where it stands, from 1."""
    task: int
    """The task."""
    event: str
    """`trained`, `dead_letter`, or why the outcome was discarded."""
    incarnation: int
    """The trainer that wrote it."""
    update: int
    """Updates behind the weights before this outcome counted: it made weights of one more."""
    entry: str
    """Its entry in the queue."""
    sending: tuple[int, int]
    """The sending that it closed: incarnation and number."""
    worker: str
    """Who finished it."""
    deliveries: int
    """Times that the sending was delivered, the last included."""
    failures: int
    """Explicit failures before."""
    time: float
    """Unix time of the line."""
    versions: tuple[WeightVersion, ...]
    """Weights that made its tokens; none for a dead letter."""
    reason: str
    """Of a dead letter; else empty."""

    @property
    def settles(self) -> bool:
        """Whether the task counts as done by this line, in its lineage."""
        return self.event in COUNTING

    @property
    def made(self) -> WeightVersion:
        """The weights that this outcome helped to make."""
        return WeightVersion(self.incarnation, self.update + 1)


@dataclass(frozen=True, slots=True)
class EventLine:
    """A line of `events.jsonl`: what a trainer did to the queue."""

    line: int
    """Where it stands, from 1."""
    event: str
    """`begun`, `sent`, `checkpoint` or `deleted`."""
    incarnation: int
    """The trainer that wrote it."""
    update: int
    """Updates done."""
    time: float
    """Unix time."""
    tasks: tuple[tuple[int, int], ...] = ()
    """Of `sent`: ranges of tasks, first and last."""
    entries: tuple[str, ...] = ()
    """Of `deleted`: entries of the queue."""
    terms: Mapping[str, int] | None = None
    """Of `begun`: batch_size, max_staleness and updates of this incarnation."""


def read_outcomes(path: Path, damage: list[Damage]) -> list[OutcomeLine]:
    """Every whole line of `ledger.jsonl`; the others are added to `damage`."""
    versions: dict[str, WeightVersion] = {}
    found = []
    for number, content in _lines(path, damage):
        try:
            found.append(_outcome(number, content, versions))
        except (KeyError, TypeError, ValueError, InvalidInput) as error:
            damage.append(Damage(path.name, number, f"is no outcome: {_told(error)}"))
    return found


def read_events(path: Path, damage: list[Damage]) -> list[EventLine]:
    """Every whole line of `events.jsonl`; the others are added to `damage`."""
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
                    terms=content.get("terms"),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            damage.append(Damage(path.name, number, f"is no event: {_told(error)}"))
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
        reason=intern(str(content.get("reason", ""))),
    )


def _lines(path: Path, damage: list[Damage]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Numbered JSON objects of a file that may grow meanwhile; nothing if it is not there."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, raw in enumerate(file, start=1):
            try:
                content = json.loads(raw)
            except ValueError:
                what = "is torn" if raw.endswith(b"\n") else "is torn, or was being written"
                damage.append(Damage(path.name, number, f"{what} ({len(raw)} bytes)"))
                continue
            if isinstance(content, dict):
                yield number, content
            else:
                damage.append(Damage(path.name, number, "is no JSON object"))


def _told(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
