"""Backups of the files of runs and of the store of the feedback service, while both are in use.

A backup is a folder named by its time, which appears only when it is complete. Files that have not changed
since the backup before are hard links to its copies, where the file system has them. It does not copy what a
trainer publishes again: the weight store and the caches of replicas. docs/backup.md has the commands.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from fairlead.errors import CorruptCheckpoint, FairleadError, InvalidInput, Unavailable, exit_code
from fairlead.log import setup

logger = logging.getLogger(__name__)

_TIME = "%Y%m%dT%H%M%S.%fZ"
_NAMES = re.compile(r"\d{8}T\d{6}\.\d{6}Z")
_PARTIAL = ".partial-"
_CHECKPOINTS = "checkpoints"
"""Start of the names of folders of checkpoints."""
_NOT_COPIED = ("weights", "weight_caches")
_MANIFEST = "manifest.json"
_ATTEMPTS = 5
_NO_STORE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def back_up_runs(runs: Path, target: Path, *, keep: int) -> Path:
    """Copy the files of every run.

    Of each run the checkpoints are copied first, then the claims of incarnations, then everything else, among
    it the journals: a copy of a run that is at work never has a step without those before it.

    Args:
        runs: the folder of runs.
        target: the folder of the backups.
        keep: how many backups to keep, with the new one.

    Returns:
        The folder of the backup.

    Raises:
        InvalidInput: if `runs` is no folder.
        CorruptCheckpoint: if a copied checkpoint is damaged or lacks a file; names the file.
        Unavailable: if checkpoints are deleted faster than they are copied.
    """
    if not runs.is_dir():
        raise InvalidInput("runs", got=str(runs), allowed="a folder of runs")
    with _Backup(target, keep) as backup:
        for run in sorted(path for path in runs.iterdir() if path.is_dir()):
            _copy_run(run, backup, Path(run.name))
    return backup.done


def back_up_store(store: Path, target: Path, *, keep: int) -> Path:
    """Copy a SQLite store that is in use, as of one moment, and check the copy.

    Args:
        store: the file of the store.
        target: the folder of the backups.
        keep: how many backups to keep, with the new one.

    Returns:
        The folder of the backup, which has the file under its name.

    Raises:
        InvalidInput: if there is no such store, or the copy is damaged.
        Unavailable: if it cannot be copied now: the disk of the copies is full, or the store is locked.
    """
    if not store.is_file():
        raise InvalidInput("store", got=str(store), allowed="a SQLite file")
    with _Backup(target, keep) as backup:
        copy = backup.folder / store.name
        try:
            with closing(sqlite3.connect(store)) as opened:
                opened.execute("VACUUM INTO ?", (str(copy),))
            with closing(sqlite3.connect(copy)) as opened:
                (found,) = opened.execute("PRAGMA integrity_check").fetchone()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _NO_STORE:
                kept = "earlier backups are unchanged"
                raise Unavailable(f"{store} cannot be copied to {target}: {error}; {kept}") from error
            raise InvalidInput("store", got=f"{store} ({error})", allowed="a SQLite file") from error
        if found != "ok":
            raise InvalidInput("store", got=f"{store} ({found})", allowed="an undamaged SQLite file")
        copy.chmod(0o600)
    return backup.done


class _Backup:
    """A backup that is being written; becomes `done` when its block ends without an error."""

    def __init__(self, target: Path, keep: int) -> None:
        self._target, self._keep = target, keep
        self.done = target / datetime.now(UTC).strftime(_TIME)
        self.folder = target / f"{_PARTIAL}{self.done.name}"
        earlier = _backups(target)
        self._before = earlier[-1] if earlier else None

    def __enter__(self) -> _Backup:
        self.folder.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        self.folder.rename(self.done)
        for old in _backups(self._target)[: -self._keep]:
            shutil.rmtree(old)
        # Of backups that were killed.
        for old in self._target.glob(f"{_PARTIAL}*"):
            shutil.rmtree(old, ignore_errors=True)

    def copy(self, file: Path, place: Path) -> None:
        """Copy a file to its place in the backup, or link the earlier copy if it has not changed."""
        copy = self.folder / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        earlier = self._before / place if self._before else None
        if earlier is not None and _is_unchanged(earlier, file):
            try:
                os.link(earlier, copy)
            except OSError:  # a file system without hard links
                logger.debug("%s: no hard link to %s", copy, earlier)
            else:
                return
        shutil.copy2(file, copy)


def _backups(target: Path) -> list[Path]:
    found = target.iterdir() if target.is_dir() else ()
    return sorted(path for path in found if _NAMES.fullmatch(path.name))


def _is_unchanged(copy: Path, file: Path) -> bool:
    if not copy.is_file():
        return False
    old, new = copy.stat(), file.stat()
    return (old.st_size, old.st_mtime_ns) == (new.st_size, new.st_mtime_ns)


def _copy_run(run: Path, backup: _Backup, place: Path) -> None:
    for folder in sorted(run.glob(f"{_CHECKPOINTS}*")):
        if folder.is_dir():
            _copy_checkpoints(folder, backup, place / folder.name)
            for claim in sorted(folder.glob("*.json")):
                backup.copy(claim, place / folder.name / claim.name)
    for file in _others(run):
        try:
            backup.copy(file, place / file.relative_to(run))
        except FileNotFoundError:
            logger.info("%s was deleted meanwhile", file)


def _others(run: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(run):
        inside = Path(folder)
        names[:] = sorted(name for name in names if not name.startswith("."))
        if inside == run:
            names[:] = [
                name for name in names if name not in _NOT_COPIED and not name.startswith(_CHECKPOINTS)
            ]
        yield from (inside / name for name in sorted(files) if not name.startswith("."))


def _copy_checkpoints(folder: Path, backup: _Backup, place: Path) -> None:
    """Copy all checkpoints of a folder, from which a trainer deletes old ones meanwhile; a stage that has
    finished deletes all of them, with the folder.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            # Hidden folders are checkpoints that are being written or deleted.
            names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return
        found = [folder / name for name in names if (folder / name / _MANIFEST).is_file()]
        copied = [path for path in found if _copy_checkpoint(path, backup, place / path.name)]
        if copied or not found:
            return
        logger.info("%s: every checkpoint was deleted while it was copied, attempt %d", folder, attempt)
    raise Unavailable(
        f"{folder}: checkpoints are deleted faster than they are copied; increase checkpoint.keep"
    )


def _copy_checkpoint(checkpoint: Path, backup: _Backup, place: Path) -> bool:
    """Copy and check a checkpoint; return False, and leave nothing, if it was deleted meanwhile."""
    try:
        for file in sorted(checkpoint.iterdir()):
            backup.copy(file, place / file.name)
    except FileNotFoundError:
        shutil.rmtree(backup.folder / place, ignore_errors=True)
        return False
    copy = backup.folder / place
    for name, digest in json.loads((copy / _MANIFEST).read_text(encoding="utf-8"))["files"].items():
        if not (copy / name).is_file():
            raise CorruptCheckpoint(f"{checkpoint / name}: {_MANIFEST} names this file, which does not exist")
        with (copy / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise CorruptCheckpoint(f"{checkpoint / name}: its content is not what {_MANIFEST} says")
    return True


def main(arguments: list[str] | None = None) -> int:
    """Make a backup as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fairlead.k8s.backup",
        description="Back up the files of runs, or the store of the feedback service, while they are in use.",
    )
    setup()
    parser.add_argument("what", choices=("runs", "store"), help="a folder of runs, or a SQLite store")
    parser.add_argument("source", type=Path, help="the folder, or the file of the store")
    parser.add_argument("target", type=Path, help="folder of the backups")
    parser.add_argument("--keep", type=int, default=7, help="number of backups to keep (default: 7)")
    found = parser.parse_args(arguments)
    if found.keep < 1:
        parser.error(f"--keep: got {found.keep}, allowed: 1 or more")
    back_up = back_up_runs if found.what == "runs" else back_up_store
    try:
        logger.info("backup %s", back_up(found.source, found.target, keep=found.keep))
    except (FairleadError, OSError) as error:
        logger.error("%s", error)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
