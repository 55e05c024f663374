"""Writes that are there whole or not at all: written aside, synced, renamed.

Used for results, models and checkpoints; knows nothing of what is in them.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from fairlead.errors import OutOfSpace, ReadOnlyDisk
from fairlead.transports.weights.disk import error_number, sync

_ROOM = "free some room, or lower checkpoint.keep and weights.keep"
_WHOLE = "What was being written is gone, what was there before is whole; the same command goes on from it"


def dumps(value: object, *, indent: int | None = None) -> str:
    """Strict JSON: a number that is not finite becomes null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_json(path: Path, value: Mapping[str, object], *, durable: bool = True) -> None:
    """Replaces a file by a JSON object. `durable` False leaves out the syncs, for what is only looked at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(dumps(value, indent=1) + "\n", encoding="utf-8")
        if durable:
            sync(aside)
        aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def open_lines(path: Path) -> BinaryIO:
    """Opens a file of lines for appending; a line torn by a crash stays a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    if file.tell():
        with path.open("rb") as written:
            written.seek(-1, os.SEEK_END)
            if written.read() != b"\n":
                file.write(b"\n")
    return file


@contextmanager
def disk_faults_named() -> Iterator[None]:
    """Turns a full or a read-only disk into an error that says which, and that nothing is lost.

    Raises:
        OutOfSpace, ReadOnlyDisk: instead of the system's and safetensors' own errors.
    """
    try:
        yield
    except OutOfSpace as error:  # the store of weights has said which, but not what to do
        raise OutOfSpace(f"the disk is full: {_ROOM}. {_WHOLE}. {error}") from error
    except (OSError, SafetensorError) as error:
        where = f" of {error.filename}" if isinstance(error, OSError) and error.filename else ""
        number = error_number(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace(f"the disk{where} is full: {_ROOM}. {_WHOLE}") from error
        if number == errno.EROFS:
            raise ReadOnlyDisk(f"the disk{where} is read-only: {error}. {_WHOLE}") from error
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into; when the block ends without error it takes the place of `path`.

    An older folder at `path` is moved out of the way first: for a moment there may be none, never a half one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    old = path.with_name(f".{path.name}.old")
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for file in sorted(aside.rglob("*")):
        sync(file)
    sync(aside)
    if path.exists():
        path.rename(old)
    aside.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
