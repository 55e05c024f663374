"""The service that vLLM's processes belong to: its process, as an environment variable names it to them.

vLLM's workers import this module, so it imports the standard library only.
"""

from __future__ import annotations

from pathlib import Path

VARIABLE = "FAIRLEAD_SERVICE_PROCESS"
"""Environment variable with the process of the service, as `identity` returns it."""


def identity(pid: int) -> str:
    """Return `<pid>:<start time>` of a running process; a pid may be used again."""
    return f"{pid}:{_fields(pid)[19]}"


def is_running(process: str) -> bool:
    """Return whether the process that `identity` returned has not ended."""
    pid, _, started = process.partition(":")
    try:
        fields = _fields(int(pid))
    except OSError:
        return False
    return fields[19] == started and fields[0] != "Z"


def _fields(pid: int) -> list[str]:
    """Return the fields of `/proc/<pid>/stat` from the third on, which is the state."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
