"""Atomic writes: to a temporary name, synced, then renamed.

Used for results, models and checkpoints. Does not know what is in them.
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
from fairlead.transports.weights.disk import FORBIDDEN, FULL, error_number, sync

_FREE_SPACE = "free some space, or lower checkpoint.keep and weights.keep"
_NOTHING_LOST = (
    "The unfinished file is removed and earlier ones are intact; run the same command again to continue"
)


def dumps(value: object, *, indent: int | None = None) -> str:
    """Return strict JSON; a number that is not finite becomes null."""
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
    """Replace a file by a JSON object; `durable=False` skips the syncs, for files that are only displayed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(dumps(value, indent=1) + "\n", encoding="utf-8")
        if durable:
            sync(unfinished)
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def open_lines(path: Path) -> BinaryIO:
    """Open a file of lines for appending; a last line cut short by a crash stays a separate line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    if os.fstat(file.fileno()).st_size:
        with path.open("rb") as written:
            written.seek(-1, os.SEEK_END)
            if written.read() != b"\n":
                file.write(b"\n")
    return file


@contextmanager
def explained_disk_errors() -> Iterator[None]:
    """Turn the errors of a full or a read-only disk, and of missing permissions, into ours, which name the
    file and what to do.

    Raises:
        OutOfSpace, ReadOnlyDisk: instead of the system's and safetensors' own errors.
    """
    try:
        yield
    except OutOfSpace as error:  # from the weight store: names the disk, but not what to do
        raise OutOfSpace(f"the disk is full: {_FREE_SPACE}. {_NOTHING_LOST}. {error}") from error
    except (OSError, SafetensorError) as error:
        where = f" of {error.filename}" if isinstance(error, OSError) and error.filename else ""
        number = error_number(error)
        if number == errno.EFBIG:
            limit = "a limit on the size of files (`ulimit -f`) is reached: raise it"
            raise OutOfSpace(f"{limit} ({error}). {_NOTHING_LOST}") from error
        if number in FULL:
            raise OutOfSpace(f"the disk{where} is full: {_FREE_SPACE}. {_NOTHING_LOST}") from error
        if number == errno.EROFS:
            raise ReadOnlyDisk(f"the disk{where} is read-only: {error}. {_NOTHING_LOST}") from error
        if number in FORBIDDEN:
            allow = f"give user {os.geteuid()} of this process the permission"
            raise ReadOnlyDisk(f"{error}: {allow}. {_NOTHING_LOST}") from error
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to write into; it replaces `path` when the block ends without an error.

    An older folder at `path` is moved away first: for a moment there is no folder, but never a partial one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    old = path.with_name(f".{path.name}.old")
    for leftover in (unfinished, old):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    for file in sorted(unfinished.rglob("*")):
        sync(file)
    sync(unfinished)
    if path.exists():
        path.rename(old)
    unfinished.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
