"""One supervisor per run folder: an advisory lock that the kernel drops with its holder.

Knows files and pids; what is locked is the caller's business.
"""

from __future__ import annotations

import fcntl
import os
from types import TracebackType

from fairlead.config import RunFolder
from fairlead.errors import ProcessFailed


class RunLock:
    """Held while a supervisor works on a run's folder; the file holds its pid."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.lock
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        """Takes the lock at once.

        Raises:
            ProcessFailed: if another process holds it; names its pid.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise ProcessFailed(
                f"{self._path.parent}: another fairlead (pid {holder}) is at work on this run"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives it back. The file stays: removing it would let two hold locks on two files."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
