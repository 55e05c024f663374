"""A figure of the check, and how a section reports it. Needs the standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value."""

    name: str
    """What was measured."""
    value: float | None
    """The value; None if it was not measured, and `note` says why."""
    unit: str = ""
    """Its unit."""
    note: str = ""
    """What it is compared with, or how it was measured."""

    def append_to(self, file: Path) -> None:
        """Add it as a line of JSON, at once, so that it outlives a section that is stopped."""
        with file.open("a") as lines:
            lines.write(json.dumps(asdict(self)) + "\n")


def read(file: Path) -> list[Figure]:
    """Return the figures of a file; none if a section wrote none. An incomplete last line is left out."""
    if not file.is_file():
        return []
    return [
        Figure(**json.loads(line)) for line in file.read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]


def skipped(name: str, why: str) -> Figure:
    """Return a figure that was not measured."""
    return Figure(name, None, note=why)
