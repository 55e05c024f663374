"""Writing to a disk that may be full or read-only: named errors, free space, and syncs.

Used by everything that writes weights, models and checkpoints. Knows nothing about their content.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fairlead.errors import OutOfSpace, ReadOnlyDisk

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, of a quota, and of a limit on the size of a file (`ulimit -f`)."""
FORBIDDEN = (errno.EACCES, errno.EPERM)
"""Errors of a file or a folder that this user may not write, or read."""


@contextmanager
def named_disk_errors(folder: Path, what: str) -> Iterator[None]:
    """Translate errors of a full or read-only disk; the message names the folder and what was written.

    Raises:
        OutOfSpace: if the disk is full, or a quota or file size limit is reached.
        ReadOnlyDisk: if this process may not write to the folder.
    """
    try:
        yield
    except Exception as error:
        number = error_number(error)
        if number in FULL:
            raise OutOfSpace(f"{what} cannot be written: the disk of {folder} is full ({error})") from error
        if number in (errno.EROFS, *FORBIDDEN):
            raise ReadOnlyDisk(f"{what} cannot be written: {folder} is read-only ({error})") from error
        raise


def error_number(error: Exception) -> int | None:
    """Return the errno of an error, None if it has none. A SafetensorError has it only in its text."""
    if isinstance(error, OSError):
        return error.errno
    if type(error).__name__ != "SafetensorError":
        return None
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def check_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Check that the disk of a folder has enough free space.

    Raises:
        OutOfSpace: if it has less than `needed_bytes`.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise OutOfSpace(f"{what} needs {needed_bytes} bytes in {folder}, but its disk has only {free} free")


def reserve(descriptor: int, offset: int, length: int) -> None:
    """Allocate a range of a file, if the file system supports it: this halves the cost of writing it.

    Raises:
        OSError: if the disk is full.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, offset, length)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def sync(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
