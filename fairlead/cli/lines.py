"""Reading and writing lines for `score` and `generate`; knows nothing about services.

`read` and `scan` read JSON lines, Parquet or text. `in_order` works on several lines concurrently and yields
the results in their order. `writing` and `resumable` write a file that appears only when it is complete; with
`resumable`, a run that was interrupted continues where it stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO, TypeVar

from fairlead.cli.output import check_out, json_text
from fairlead.data.files import scan_file
from fairlead.data.lines import Line, parse
from fairlead.errors import ConfigError, DataError, FairleadError

STANDARD_INPUT = "-"
_READ_BYTES = 1 << 20

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read(source: Path, *, field: str, text_key: str | None = None) -> Iterator[Line]:
    """Yield the lines of a file; arguments as in `scan`.

    Raises:
        ConfigError: as in `scan`.
        DataError: for the first bad line.
    """
    for line in scan(source, field=field, text_key=text_key):
        if isinstance(line, DataError):
            raise line
        yield line


def scan(source: Path, *, field: str, text_key: str | None = None) -> Iterator[Line | DataError]:
    """Yield the lines of a file, or of standard input for `-`; for a bad line, its error. Skip blank lines.

    Args:
        source: JSON lines, gzipped or not, or Parquet; standard input is JSON lines.
        field: the argument that names the source, for errors.
        text_key: read every line as plain text, as if it were the JSON object `{text_key: line}`.

    Raises:
        ConfigError: if the source cannot be read, or standard input is a terminal.
        DataError: if the file is damaged.
    """
    if str(source) == STANDARD_INPUT:
        if sys.stdin.isatty():
            raise ConfigError(
                field, got="a terminal as standard input", allowed="a file, or lines from a pipe"
            )
        found = _scan_stream(text_key)
    elif text_key is not None:
        found = _scan_text(source, field, text_key)
    else:
        found = scan_file(source, field=field)
    yield from found


def count(source: Path) -> int | None:
    """Return the number of lines of a plain file; None for other files and streams."""
    if not source.is_file() or source.suffix in (".gz", ".parquet"):
        return None
    with source.open("rb") as file:
        return sum(1 for line in file if line.strip())


async def in_order(
    items: Iterator[_Item], work: Callable[[_Item], Awaitable[_Result]], *, at_once: int
) -> AsyncIterator[_Result]:
    """Yield the results of `work` in the order of the items, working on up to `at_once` items concurrently.

    The first error, of reading an item or of its work, is raised in its order and cancels the remaining work.
    """
    waiting: deque[asyncio.Task[_Result]] = deque()
    source = read_aside(items, ahead=at_once)
    failure = None

    async def run(item: _Item) -> _Result:
        return await work(item)

    async def read() -> tuple[_Item] | None:
        try:
            return (await anext(source),)
        except StopAsyncIteration:
            return None

    reading: asyncio.Task[tuple[_Item] | None] | None = asyncio.create_task(read())
    try:
        while waiting or reading is not None:
            first: list[asyncio.Task[Any]] = [waiting[0]] if waiting else []
            more = [reading] if reading is not None and len(waiting) < at_once else []
            await asyncio.wait([*first, *more], return_when=asyncio.FIRST_COMPLETED)
            if waiting and waiting[0].done():
                yield waiting.popleft().result()
            elif reading is not None and reading.done():
                failure = reading.exception()
                found = None if failure is not None else reading.result()
                if found is not None:
                    waiting.append(asyncio.create_task(run(found[0])))
                reading = asyncio.create_task(read()) if found is not None else None
        if failure is not None:
            raise failure
    finally:
        running: list[asyncio.Task[Any]] = [*waiting, *([reading] if reading is not None else [])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def read_aside(items: Iterator[_Item], *, ahead: int) -> AsyncIterator[_Item]:
    """Yield the items, reading them in a thread because a pipe may block.

    The thread is a daemon outside the event loop's pool, so nothing waits for it after an interruption.

    Args:
        items: the items.
        ahead: how many items are read ahead.
    """
    loop = asyncio.get_running_loop()
    read: asyncio.Queue[tuple[_Item] | Exception | None] = asyncio.Queue(ahead)

    def put(what: tuple[_Item] | Exception | None) -> None:
        putting = read.put(what)
        try:
            asyncio.run_coroutine_threadsafe(putting, loop).result()
        except RuntimeError:  # the loop is closed
            putting.close()
            raise

    def pump() -> None:
        # The event loop may have been closed, and then nothing waits for the items.
        with contextlib.suppress(RuntimeError, CancelledError):
            try:
                for item in items:
                    put((item,))
                put(None)
            except (FairleadError, OSError) as error:
                put(error)

    threading.Thread(target=pump, name="reader", daemon=True).start()
    while (found := await read.get()) is not None:
        if isinstance(found, Exception):
            raise found
        yield found[0]


@contextmanager
def writing(out: Path | None) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """Yield a function that writes a JSON line to standard output, or to a file that appears at the end.

    Raises:
        Exit: as in `check_out`.
    """
    if out is None:
        yield lambda values: _write(sys.stdout, values)
        return
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            yield lambda values: _write(file, values)
            os.fsync(file.fileno())
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)


class PartialOutput:
    """The hidden file next to `--out` that holds the finished lines. Created by `resumable`."""

    def __init__(self, path: Path, file: IO[bytes], *, added: frozenset[str]) -> None:
        """Open the file; `added` are the keys of a written line that its input does not have."""
        self.path = path
        self._file = file
        self._added = added
        self._drop_torn_line()

    def write(self, lines: Sequence[Mapping[str, object]]) -> None:
        """Append lines; after this returns they are kept even if the process is killed."""
        self._file.write(b"".join(dumps(line) for line in lines))
        self._file.flush()

    def done(self) -> Iterator[dict[str, Any]]:
        """Yield the lines that earlier runs wrote."""
        with self.path.open("rb") as earlier:
            for number, line in enumerate(earlier, start=1):
                try:
                    yield json.loads(line)
                except ValueError:
                    raise self.mismatch(number, "is damaged") from None

    def is_of(self, written: Mapping[str, Any], values: Mapping[str, object]) -> bool:
        """Return whether a written line belongs to a line of the input."""
        expected = json.loads(dumps({key: value for key, value in values.items() if key not in self._added}))
        return bool(expected == {key: value for key, value in written.items() if key not in self._added})

    def mismatch(self, number: int, what: str) -> ConfigError:
        """Return the error that says why the run cannot continue from these lines."""
        return ConfigError(
            "--out",
            got=f"{self.path.name}, whose line {number} {what}",
            allowed="lines of the same run, or --restart to begin again",
        )

    def _drop_torn_line(self) -> None:
        """Remove an incomplete last line, which an interrupted write leaves."""
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
def resumable(out: Path, *, added: frozenset[str], restart: bool) -> Iterator[PartialOutput]:
    """Yield the partial output of a file; when the block ends without an error, it becomes the file.

    Args:
        out: the file.
        added: keys of a written line that its input does not have.
        restart: discard what an earlier run has written.

    Raises:
        ConfigError: if another run is writing it.
        Exit: as in `check_out`.
    """
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.partial")
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        if not _lock(file, path):
            # The reason first: a long path is cut at its end.
            got = f"a file that another run is writing, {path}"
            raise ConfigError("--out", got=got, allowed="one run at a time")
        if restart:
            file.truncate(0)
        partial = PartialOutput(path, file, added=added)
        try:
            yield partial
        except BaseException:
            if not path.stat().st_size:
                path.unlink()
            raise
        os.fsync(file.fileno())
        path.replace(out)


def _lock(file: IO[bytes], path: Path) -> bool:
    """Take the lock; return False if another run has it, or had it when the file was opened."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def dumps(values: Mapping[str, object]) -> bytes:
    """Return a JSON line in UTF-8."""
    return (json_text(values, encoding="utf-8") + "\n").encode()


def _write(file: TextIO, values: Mapping[str, object]) -> None:
    file.write(json_text(values, encoding=file.encoding) + "\n")
    if file is sys.stdout:
        file.flush()


def _scan_stream(text_key: str | None) -> Iterator[Line | DataError]:
    # Not sys.stdin: a thread that reads it holds a lock that the interpreter needs to exit.
    with open(0, "rb", closefd=False) as stream:
        for number, content in enumerate(stream, start=1):
            if content.strip():
                yield (
                    _text("stdin", number, content, text_key) if text_key else parse("stdin", number, content)
                )


def _scan_text(source: Path, field: str, key: str) -> Iterator[Line | DataError]:
    try:
        with source.open("rb") as file:
            for number, content in enumerate(file, start=1):
                if content.strip():
                    yield _text(str(source), number, content, key)
    except FileNotFoundError:
        raise ConfigError(field, got=str(source), allowed="a file that exists") from None
    except OSError as error:
        raise ConfigError(field, got=f"{source}: {error.strerror}", allowed="a readable file") from error


def _text(file: str, number: int, content: bytes, key: str) -> Line | DataError:
    try:
        text = content.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        bad = content[error.start]
        return DataError(file, number, got=f"byte 0x{bad:02x} at position {error.start}", allowed="UTF-8")
    return Line(file, number, {key: text.rstrip("\r\n")})
