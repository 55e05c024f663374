"""A file that somebody else appends lines to, read as they come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


class Tail:
    """Where a reader stands in a growing file."""

    def __init__(self, path: Path) -> None:
        """The file need not exist yet."""
        self._path = path
        self._offset = self._number = 0

    def appended(self) -> Iterator[tuple[int, bytes]]:
        """(number from 1, content) of each whole line since the last look; one under the pen waits.

        A file that has become shorter is another one: its lines come from number 1 again.

        Raises:
            OSError: if it is there and cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset = self._number = 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._number += 1
            yield self._number, line
