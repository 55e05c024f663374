"""A file of JSON lines that grows: every read parses only what is new."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
"""One JSON object."""


class JsonLines:
    """The rows of a file; lines that are damaged or not complete yet are left out."""

    def __init__(
        self, path: Path, *, keep: Callable[[Row], Row | None] | None = None, ends: int | None = None
    ) -> None:
        """
        Args:
            path: the file; it need not exist yet.
            keep: returns what to keep of a row, or None to leave it out.
            ends: keep at least this many rows of the start and of the end, and drop others to save memory.
        """
        self._path = path
        self._keep = keep
        self._ends = ends
        self._rows: list[Row] = []
        self._file: tuple[int, int] = (0, 0)
        self._offset = 0

    def read(self) -> list[Row]:
        """Return all rows so far. A file that was replaced or cut is read again from its start."""
        try:
            with self._path.open("rb") as file:
                status = self._path.stat()
                found = (status.st_dev, status.st_ino)
                if found != self._file or status.st_size < self._offset:
                    self._rows, self._offset, self._file = [], 0, found
                file.seek(self._offset)
                content = file.read()
        except OSError:
            self._rows, self._offset = [], 0
            return []
        complete = content.rfind(b"\n") + 1
        for line in content[:complete].splitlines():
            self._add(line)
        self._offset += complete
        if self._ends is not None and len(self._rows) > 3 * self._ends:
            self._rows = [*self._rows[: self._ends], *self._rows[-self._ends :]]
        return list(self._rows)

    def _add(self, line: bytes) -> None:
        try:
            row = json.loads(line)
        except ValueError:
            return
        if isinstance(row, dict):
            kept = row if self._keep is None else self._keep(row)
            if kept is not None:
                self._rows.append(kept)
