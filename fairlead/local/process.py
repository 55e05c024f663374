"""One supervised child: its program, its log, its state, its end.

The supervisor decides when it starts and what its end means; this file does it. Children lead their own
process group (Ctrl-C on the terminal reaches the supervisor alone) and die with the supervisor (launch.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fairlead.local import launch
from fairlead.local.probes import Probe

_LAST_BYTES = 16_384


class State(enum.StrEnum):
    """What a process is doing."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "restarting"
    STOPPING = "stopping"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """What is needed to run one process."""

    name: str
    """Unique in the run: `policy-0`, `trainer`."""
    command: tuple[str, ...]
    """Program and arguments."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside those that every process of the run gets; secrets travel here."""
    probe: Probe | None = None
    """Says when it is ready; None: as soon as it runs."""
    alive: Probe | None = None
    """Says whether it answers at all; None: it is never asked."""
    metrics: str = ""
    """`host:port` of `/metrics` and `/waiting`; empty if it has none."""
    ready_after: tuple[str, ...] = ()
    """Processes without which it cannot become ready: its time to do so starts when they are."""
    drain_rank: int = 0
    """Lower ranks are stopped first, and have ended before the next rank is told to."""
    is_main: bool = False
    """Its success is the end of the run."""
    restarts: bool = True
    """Started again when it dies."""


class Process:
    """A child and what became of it."""

    def __init__(self, spec: ProcessSpec, *, log: Path, environment: Mapping[str, str]) -> None:
        self.spec = spec
        self.log = log
        self.state = State.WAITING
        self.starts = 0
        """How often it was started."""
        self.failures = 0
        """Ends in a row without a minute of health between."""
        self.stalls = 0
        """Ends in a row because what it waited for did not come."""
        self.was_ready = False
        """Whether any child of it ever was."""
        self.ready_at: float | None = None
        """Monotonic time at which the present child became ready."""
        self.started_at = 0.0
        """Monotonic time of the last start."""
        self._environment = {**environment, **spec.environment}
        self._child: asyncio.subprocess.Process | None = None
        self._log_start = 0

    @property
    def name(self) -> str:
        """The name in the run."""
        return self.spec.name

    @property
    def restarts(self) -> int:
        """Starts after the first."""
        return max(0, self.starts - 1)

    @property
    def pid(self) -> int | None:
        """Process id while the child lives."""
        child = self._child
        return child.pid if child is not None and child.returncode is None else None

    async def start(self) -> None:
        """Starts the child, with its output at the end of its log."""
        self.starts += 1
        self.started_at = time.monotonic()
        self.ready_at = None
        self.state = State.STARTING
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            output.write(_header(self.spec, self.starts).encode())
            output.flush()
            self._log_start = output.tell()
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", launch.__file__, str(os.getpid())),
                *self.spec.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    async def wait(self) -> int:
        """Waits for the end. Returns the exit code, or minus the number of the signal that killed it."""
        assert self._child is not None
        code = await self._child.wait()
        # Whatever it may have started itself and left behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        return code

    def mark_ready(self) -> None:
        """Notes that the child is ready."""
        self.state = State.READY
        self.ready_at = time.monotonic()
        self.was_ready = True

    def terminate(self) -> None:
        """Asks the child to drain and end."""
        if self.pid is not None:
            self.state = State.STOPPING
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends the child and everything in its process group at once."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """The last line that the present or latest child wrote; of a JSON line, its message."""
        try:
            with self.log.open("rb") as written:
                end = written.seek(0, os.SEEK_END)
                written.seek(max(self._log_start, end - _LAST_BYTES))
                lines = written.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((_plain(line) for line in reversed(lines) if line.strip()), "")


def describe_exit(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _header(spec: ProcessSpec, start: int) -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"--- {now} start {start} of {spec.name}: {' '.join(spec.command)}\n"


def _plain(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line.strip()
    if not isinstance(entry, dict) or "message" not in entry:
        return line.strip()
    exception = str(entry.get("exception") or "").strip().rpartition("\n")[2]
    return f"{entry['message']}: {exception}" if exception else str(entry["message"])
