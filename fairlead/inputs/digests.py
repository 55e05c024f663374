"""Digests of the contents of files and folders: BLAKE3, computed once for every state of a file.

A cache by size, times and inode makes the next start cheap for models of many gigabytes. A file that was
changed in the last seconds is not cached, because a later change might leave no trace in its times.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from fairlead.config.saving import replace_text

_SETTLED_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Content:
    """The contents of a file or of all files in a folder."""

    digest: str
    """BLAKE3 in hexadecimal."""
    size_bytes: int
    """Size of all files together."""


class Digests:
    """Computes digests; `save` keeps them for the next process."""

    def __init__(self, cache: Path) -> None:
        """Read the cache, a JSON file; an unreadable one counts as empty."""
        self._cache = cache
        self._known: dict[str, list[object]] = {}
        try:
            known = json.loads(cache.read_text(encoding="utf-8"))
            self._known = {str(path): list(entry) for path, entry in known.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass
        self._used: dict[str, list[object]] = {}

    def of(self, path: Path) -> Content:
        """Return the contents of a file, or of a folder with the relative names of its files.

        Hidden files and folders are left out.

        Raises:
            OSError: if it cannot be read.
        """
        if not path.is_dir():
            return self._of_file(path)
        whole, size = blake3(), 0
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path)
            if file.is_file() and not any(part.startswith(".") for part in name.parts):
                found = self._of_file(file)
                whole.update(os.fsencode(name.as_posix()) + f"\0{found.digest}\n".encode())
                size += found.size_bytes
        return Content(whole.hexdigest(), size)

    def save(self) -> None:
        """Write the digests to the cache; those of files that are gone are dropped.

        Nothing depends on the cache: a disk that is full or read-only is left to what must be written.
        """
        kept = {path: entry for path, entry in self._known.items() if Path(path).is_file()} | self._used
        if kept != self._known:
            with contextlib.suppress(OSError):
                self._cache.parent.mkdir(parents=True, exist_ok=True)
                replace_text(self._cache, json.dumps(kept, indent=1) + "\n")

    def _of_file(self, path: Path) -> Content:
        path = path.resolve()
        status = path.stat()
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        known = self._known.get(str(path))
        if known is not None and known[:-1] == state:
            digest = str(known[-1])
        else:
            hasher = blake3(max_threads=blake3.AUTO)
            digest = hasher.update_mmap(path).hexdigest()
        if time.time() - status.st_ctime > _SETTLED_SECONDS:
            self._used[str(path)] = [*state, digest]
        return Content(digest, status.st_size)
