"""Read the lines that another process appends to a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


class Tail:
    """The position of a reader in a growing file."""

    def __init__(self, path: Path) -> None:
        """Create a reader; the file need not exist yet."""
        self._path = path
        self._offset = 0
        self._number = 0

    def appended(self) -> Iterator[tuple[int, bytes]]:
        """Yield (number from 1, content) of each complete line since the last call; an incomplete line waits.

        A file that has become shorter is treated as a new one, whose numbers start at 1 again.

        Raises:
            OSError: if the file exists and cannot be read.
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
