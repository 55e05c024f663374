"""A file of JSON lines that appears whole at the end, and goes on where an interrupted run stopped.

What is done so far lies beside it, each line written in one piece as soon as it is there. Another run checks
it against its own input before it goes on, line by line, so that nothing is lost, doubled or mixed up.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fairlead.errors import ConfigError

_READ_BYTES = 1 << 20


class Partial:
    """The lines that are done, on the disk. Made by `resumable`."""

    def __init__(self, path: Path, file: IO[bytes], *, added: frozenset[str]) -> None:
        """`added` are the keys of a written line that are not of its input."""
        self.path = path
        self._file, self._added = file, added
        self._drop_torn_line()

    def write(self, lines: Sequence[Mapping[str, object]]) -> None:
        """Adds lines; once this returns they outlive the process, however that ends."""
        self._file.write(b"".join(dumps(line) for line in lines))
        self._file.flush()

    def done(self) -> Iterator[dict[str, Any]]:
        """What earlier runs wrote."""
        with self.path.open("rb") as earlier:
            for number, line in enumerate(earlier, start=1):
                try:
                    yield json.loads(line)
                except ValueError:
                    raise self.mismatch(number, "is damaged") from None

    def is_of(self, written: Mapping[str, Any], values: Mapping[str, object]) -> bool:
        """Whether a written line is of these values of the input."""
        asked = json.loads(dumps({key: value for key, value in values.items() if key not in self._added}))
        return bool(asked == {key: value for key, value in written.items() if key not in self._added})

    def mismatch(self, number: int, what: str) -> ConfigError:
        """The error that says why the lines cannot be gone on with."""
        return ConfigError(
            "--out",
            got=f"{self.path.name}, whose line {number} {what}",
            allowed="the rest of the same run, or --restart to begin anew",
        )

    def _drop_torn_line(self) -> None:
        """A write that was cut off leaves half a line at the end."""
        end = self._file.seek(0, os.SEEK_END)
        size = end
        while size:
            start = max(0, size - _READ_BYTES)
            self._file.seek(start)
            newline = self._file.read(size - start).rfind(b"\n")
            if newline >= 0:
                size = start + newline + 1
                break
            size = start
        if size != end:
            self._file.truncate(size)
        self._file.seek(size)


@contextmanager
def resumable(out: Path, *, added: frozenset[str], restart: bool) -> Iterator[Partial]:
    """Gives what is done of a file; when the block ends without error it becomes the file.

    Args:
        out: the file.
        added: keys of a written line that are not of its input.
        restart: forget what an earlier run has done.

    Raises:
        ConfigError: another run is at it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.partial")
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        if not _is_mine(file, path):
            # The reason first: a long path is cut at its end.
            got = f"what another run is writing, {path}"
            raise ConfigError("--out", got=got, allowed="one run at a time")
        if restart:
            file.truncate(0)
        partial = Partial(path, file, added=added)
        try:
            yield partial
        except BaseException:
            if not path.stat().st_size:
                path.unlink()
            raise
        os.fsync(file.fileno())
        path.replace(out)


def _is_mine(file: IO[bytes], path: Path) -> bool:
    """Takes the lock; False if another run has it, or had it when the file was opened."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def dumps(values: Mapping[str, object]) -> bytes:
    """A JSON line. A row of a table may hold dates and the like; they go back out as text."""
    # Half a surrogate pair in a key that nobody reads has no UTF-8; escaped, it goes back out as it came.
    text = json.dumps(values, ensure_ascii=False, default=str)
    try:
        return (text + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(values, default=str) + "\n").encode()
