"""Lines in, lines out: what `score` and `generate` read and write.

Work is done on several lines at the same time, results come in the order of the lines, and a file that is
written appears whole or not at all. Knows no service.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from fairlead.data.files import scan_file
from fairlead.data.lines import Line, parse
from fairlead.errors import ConfigError, DataError, FairleadError

STANDARD_INPUT = "-"

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read(source: Path, *, field: str, text_key: str | None = None) -> Iterator[Line]:
    """The lines of a file, as `scan`.

    Raises:
        ConfigError: as `scan`.
        DataError: the first line that is not what it should be.
    """
    for line in scan(source, field=field, text_key=text_key):
        if isinstance(line, DataError):
            raise line
        yield line


def scan(source: Path, *, field: str, text_key: str | None = None) -> Iterator[Line | DataError]:
    """Lines of a file, or of standard input for `-`, bad ones as their errors; blank ones are passed over.

    Args:
        source: JSON lines, gzipped or not, or Parquet; standard input is JSON lines.
        field: the argument that names it, for errors.
        text_key: take every line as plain text, as if it were the JSON object `{text_key: line}`.

    Raises:
        ConfigError: it cannot be read, or nobody writes to standard input.
        DataError: it is damaged.
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
    """How many lines a plain file has; None for what only reading to the end would tell."""
    if not source.is_file() or source.suffix in (".gz", ".parquet"):
        return None
    with source.open("rb") as file:
        return sum(1 for line in file if line.strip())


async def in_order(
    items: Iterator[_Item], work: Callable[[_Item], Awaitable[_Result]], *, at_once: int
) -> AsyncIterator[_Result]:
    """The results of `work` in the order of the items, `at_once` of them under way at the same time.

    The first mistake, of an item or of its work, ends what is under way and is raised in its turn.
    """
    waiting: deque[asyncio.Task[_Result]] = deque()
    source, failure = read_aside(items, ahead=at_once), None

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
        under_way: list[asyncio.Task[Any]] = [*waiting, *([reading] if reading is not None else [])]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def read_aside(items: Iterator[_Item], *, ahead: int) -> AsyncIterator[_Item]:
    """The items, read in a thread: a pipe blocks for as long as its writer thinks.

    A daemon's thread, and not one of the loop's: nothing waits for it when the command is interrupted.
    """
    loop = asyncio.get_running_loop()
    read: asyncio.Queue[tuple[_Item] | Exception | None] = asyncio.Queue(ahead)

    def put(what: tuple[_Item] | Exception | None) -> None:
        asyncio.run_coroutine_threadsafe(read.put(what), loop).result()

    def pump() -> None:
        # The loop may be gone by now, and with it whoever waits.
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
    """Gives a function that writes a JSON line, to standard output or to a file that appears at the end."""
    if out is None:
        yield lambda values: _write(sys.stdout, values)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            yield lambda values: _write(file, values)
            os.fsync(file.fileno())
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)


def _write(file: TextIO, values: Mapping[str, object]) -> None:
    # A row of a table may hold dates and the like; they go back out as text.
    file.write(json.dumps(values, ensure_ascii=False, default=str) + "\n")
    if file is sys.stdout:
        file.flush()


def _scan_stream(text_key: str | None) -> Iterator[Line | DataError]:
    # Not sys.stdin: a thread that reads it holds a lock that the interpreter wants when it ends.
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
