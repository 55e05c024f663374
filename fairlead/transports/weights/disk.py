"""What a disk refuses, in words: full, or not to be written on. Beneath everything that writes weights."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fairlead.errors import OutOfSpace, ReadOnlyDisk

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def faults_named(folder: Path, what: str) -> Iterator[None]:
    """Turns the system's errors of a full or a read-only disk into ours, with the folder and the thing.

    Raises:
        OutOfSpace: for a full disk, a quota or a limit on the size of files.
        ReadOnlyDisk: for a folder that this process may not write into.
    """
    try:
        yield
    except Exception as error:
        number = error_number(error)
        if number in _FULL:
            raise OutOfSpace(f"{what} cannot be written: the disk of {folder} is full ({error})") from error
        if number in _READ_ONLY:
            raise ReadOnlyDisk(f"{what} cannot be written: {folder} is read-only ({error})") from error
        raise


def error_number(error: Exception) -> int | None:
    """The system's number of an error; what safetensors raises has it in its text alone."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(told[1]) if told else None


def check_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Says beforehand that something will not fit.

    Raises:
        OutOfSpace: if the disk of the folder has less room.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise OutOfSpace(f"{what} needs {needed_bytes} bytes in {folder}, whose disk has {free}")


def reserve(descriptor: int, offset: int, length: int) -> None:
    """Room for a range of a file, where the system can do that: half of what writing costs is finding it.

    Raises:
        OSError: if there is none.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, offset, length)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
