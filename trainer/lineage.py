"""Incarnations of the trainer: which one began at which update. Files next to the checkpoints.

`incarnation-<n>.json` claims a number by exclusive creation. `incarnation-<n>.resumed-from.json` records,
before anything is published, at which update the incarnation began. It is written once: by the incarnation
itself, or by a newer one that found it missing; in that case it says that incarnation n never begins. So a
trainer that begins knows all incarnations that began before it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from fairlead.errors import CorruptCheckpoint, Fenced
from fairlead.transports.weights import disk
from fairlead.transports.weights.base import Ancestor
from trainer import durable

_CLAIM = re.compile(r"incarnation-(\d+)\.json")


def claim(folder: Path, *, at_least: int) -> int:
    """Claim the next incarnation and return its number: above every claimed one, and at least `at_least`."""
    folder.mkdir(parents=True, exist_ok=True)
    number = max([at_least, *(known + 1 for known in claimed(folder))])
    while True:
        path = folder / f"incarnation-{number}.json"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            number += 1
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}, file)
            file.flush()
            os.fsync(file.fileno())
        disk.sync(folder)
        return number


def record_resume(folder: Path, incarnation: int, *, resumed_from: int) -> None:
    """Record, permanently, the update at which an incarnation begins.

    Raises:
        Fenced: if a newer incarnation has shut it out.
    """
    try:
        _write_once(_resume_path(folder, incarnation), {"resumed_from": resumed_from})
    except FileExistsError as error:
        raise Fenced(f"a newer incarnation of the trainer has taken over from {incarnation}") from error


def shut_out(folder: Path, incarnation: int) -> None:
    """Prevent every older incarnation that has not begun yet from ever beginning."""
    for older in claimed(folder):
        if older < incarnation:
            with contextlib.suppress(FileExistsError):
                record = {"resumed_from": None, "shut_out_by": incarnation}
                _write_once(_resume_path(folder, older), record)


def claimed(folder: Path) -> list[int]:
    """Return every incarnation that was ever claimed, in order."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _CLAIM.fullmatch(name)))


def read(folder: Path) -> tuple[Ancestor, ...]:
    """Return every incarnation that began, in order.

    Raises:
        CorruptCheckpoint: if the record of a resume cannot be read: a guess would mix lineages.
    """
    ancestors = []
    for incarnation in claimed(folder):
        path = _resume_path(folder, incarnation)
        if not path.exists():
            continue
        try:
            resumed_from = json.loads(path.read_text(encoding="utf-8"))["resumed_from"]
            if resumed_from is not None:
                ancestors.append(Ancestor(incarnation, int(resumed_from)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptCheckpoint(f"{path} cannot be read: {error}") from error
    return tuple(ancestors)


def _resume_path(folder: Path, incarnation: int) -> Path:
    return folder / f"incarnation-{incarnation}.resumed-from.json"


def _write_once(path: Path, value: Mapping[str, object]) -> None:
    """Write a file atomically, once.

    Raises:
        FileExistsError: if the file exists already.
    """
    if path.exists():
        raise FileExistsError(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}")
    durable.write_json(unfinished, value)
    try:
        os.link(unfinished, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A volume without hard links: another process may have written the file since the check above.
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    disk.sync(path.parent)
