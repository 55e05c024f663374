"""`processes.json`: name → pid of what runs, and what an earlier supervisor left behind.

Every child carries the run's folder in its environment; by that a pid of the file is known to be ours and
not a stranger's that got the same number later.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import psutil

from fairlead.config.saving import replace_text

MARK = "FAIRLEAD_SUPERVISED_RUN"
"""Environment variable of every child: the absolute path of the run's folder."""

_END_SECONDS = 10.0


def write(path: Path, pids: Mapping[str, int]) -> None:
    """Replaces the file in one step."""
    replace_text(path, json.dumps(pids, indent=1) + "\n")


def read(path: Path) -> dict[str, int]:
    """Name → pid as last written; empty if there is no such file or it is not one."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {str(name): pid for name, pid in entries.items() if isinstance(pid, int) and pid > 0}


def running(path: Path, *, mark: str) -> dict[str, int]:
    """What of the file is alive and belongs to the run."""
    return {name: pid for name, pid in read(path).items() if _is_ours(pid, mark=mark)}


def end_stale(path: Path, *, mark: str) -> list[str]:
    """Kills what is left of an earlier supervisor. Only for the holder of the run's lock.

    Nothing is drained: whatever dies, no task is lost. Returns the names.
    """
    stale = running(path, mark=mark)
    for pid in stale.values():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    gone = []
    for pid in stale.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            gone.append(psutil.Process(pid))
    psutil.wait_procs(gone, timeout=_END_SECONDS)
    return sorted(stale)


def _is_ours(pid: int, *, mark: str) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except psutil.Error:
        return False
